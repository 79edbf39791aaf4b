"""What TensorBoard shows of a training: loss and rate of each step, scores and pictures of each validation.

TensorBoard is an extra: ``pip install 'unetflow[tensorboard]'``.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError

Event = dict[str, Any]

_OF_A_STEP = ("loss", "learning_rate", "gradient_norm")


def check_board() -> None:
    """Refuse to write for TensorBoard where it is not installed.

    Raises
    ------
    InputError
        If the package is missing.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise InputError(
            "train.tensorboard = true needs the package tensorboard, which is not installed; "
            "pip install 'unetflow[tensorboard]', or set train.tensorboard = false"
        )


class Board:
    """Writes the events of a training beside telling them on.

    A training that goes on drops what was written of later steps; one that begins drops all.

    Parameters
    ----------
    folder : pathlib.Path
        Where TensorBoard looks: ``tensorboard --logdir FOLDER``.
    on_event : callable
        Is told each event too.
    """

    def __init__(self, folder: Path, on_event: Callable[[Event], None]) -> None:
        self._folder, self._tell = folder, on_event
        self._writer: Any = None

    def __call__(self, event: Event) -> None:
        """Take an event of the loop (`unetflow.nn.loop.train`)."""
        self._tell(event)
        if event["event"] == "resumed":
            self._open(int(event["step"]) + 1)
        elif event["event"] == "step":
            self._write("train", event, _OF_A_STEP)
        elif event["event"] == "validation":
            self._write("validation", event, tuple(event.keys() - {"event", "step", "is_best"}))

    def show(self, name: str, step: int, picture: npt.NDArray[np.uint8]) -> None:
        """Add a picture (Y, X, 3)."""
        self._open().add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()

    def _write(self, group: str, event: Event, names: tuple[str, ...]) -> None:
        for name in names:
            self._open().add_scalar(f"{group}/{name}", event[name], event["step"])

    def _open(self, first_step: int | None = None) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            if first_step is None:
                shutil.rmtree(self._folder, ignore_errors=True)
            self._writer = SummaryWriter(str(self._folder), purge_step=first_step)
        return self._writer
