"""Models to use, and checkpoints to go on from.

A model file holds weights and all that is needed to use them. A checkpoint also holds
the optimiser, the random state and the place in the data. Both are tensor files.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.failpoints import fail_point
from unetflow.nn.tensorfile import DamagedFileError, read_tensors, write_tensors
from unetflow.nn.unet import UNet, memory_format

MODEL_NAME = "model.safetensors"
N_KEPT = 2
_NAME = re.compile(r"step-(\d{8,})\.safetensors")
_log = logging.getLogger(__name__)

Groups = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What a checkpoint holds.

    Parameters
    ----------
    step : int
        Optimiser steps done.
    groups : dict of dict of Tensor
        Named groups of named tensors, for instance ``groups["model"]["head.bias"]``.
    state : dict
        Plain JSON types.
    """

    step: int
    groups: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def export_model(
    path: str | Path, model: UNet, metadata: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
) -> None:
    """Write a model file.

    Parameters
    ----------
    path : str or Path
    model : UNet
    metadata : mapping
        Plain JSON types; ``architecture`` is added.
    state : mapping of str to Tensor, optional
        Weights to write in place of the model's own, for instance the best ones.
    """
    record = {**metadata, "architecture": model.spec.to_dict()}
    write_tensors(path, model.state_dict() if state is None else state, record)


def load_model(path: str | Path) -> tuple[UNet, dict[str, Any]]:
    """Read a model file, or that of a run folder.

    Returns
    -------
    model : UNet
        On the CPU.
    metadata : dict
        As given to `export_model`, with ``architecture``.

    Raises
    ------
    InputError
        If there is no such file, or it is not a whole model of ours.
    """
    path = Path(path)
    path = path / MODEL_NAME if path.is_dir() else path
    try:
        tensors, metadata = read_tensors(path)
        spec = UNetSpec.from_dict(metadata["architecture"])
        with torch.device("meta"):
            model = UNet(spec)
        model.load_state_dict(tensors, assign=True)
    except FileNotFoundError:
        raise InputError(
            f"a model must be a file or a run folder with {MODEL_NAME}, got '{path}', which is not there; "
            "train one, or name another with --model"
        ) from None
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as cause:
        raise InputError(
            f"a model must be a whole {MODEL_NAME} written by unetflow, got '{path}': {_short(cause)}; "
            "train again, or name another with --model"
        ) from cause
    return model.to(memory_format=memory_format(spec.dims)), metadata  # type: ignore[call-overload]


def save_checkpoint(folder: str | Path, step: int, groups: Groups, state: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step`` and keep it and the one before.

    Later ones go too: training went on from before them because they were damaged.
    """
    folder = Path(folder)
    path = _path(folder, step)
    flat = {f"{group}/{name}": tensor for group, some in groups.items() for name, tensor in some.items()}
    write_tensors(path, flat, {"step": step, "state": dict(state)})
    steps = _checkpoints(folder)
    kept = [n for n in sorted(steps) if n <= step][-N_KEPT:]
    for n in steps.keys() - set(kept):
        fail_point("before-checkpoint-removal")
        steps[n].unlink(missing_ok=True)
    return path


def load_latest(folder: str | Path) -> Checkpoint | None:
    """Return the newest whole checkpoint, or None where there is none at all.

    Raises
    ------
    InputError
        If there are checkpoints and all of them are damaged.
    """
    steps = _checkpoints(Path(folder))
    for step in sorted(steps, reverse=True):
        try:
            return _load(steps[step])
        except DamagedFileError as cause:
            _log.warning("%s; falling back to the checkpoint before it", cause)
    if steps:
        raise InputError(
            f"at least one checkpoint must be whole, got {len(steps)} damaged in '{folder}'; "
            "delete them, or start anew with --overwrite"
        )
    return None


def load_step(folder: str | Path, step: int, *, patience: float = 60.0) -> Checkpoint:
    """Return the checkpoint of a step, which another process has found to be whole.

    A network file system may show it to this host only some seconds later.

    Raises
    ------
    InputError
        If it is not there, whole, within ``patience`` seconds.
    """
    path, until = _path(folder, step), time.monotonic() + patience
    while True:
        try:
            return _load(path)
        except (FileNotFoundError, DamagedFileError) as cause:
            if time.monotonic() > until:
                raise InputError(
                    f"all workers must see the same run folder, but '{path}' is not whole on this one ({cause}); "
                    "put the run on a file system that they share"
                ) from None
        time.sleep(0.2)


def sweep(folder: str | Path) -> None:
    """Remove what a process that was killed while it wrote has left; nobody may be writing now."""
    for path in Path(folder).glob(".step-*.tmp"):
        path.unlink(missing_ok=True)


def _path(folder: str | Path, step: int) -> Path:
    return Path(folder) / f"step-{step:08d}.safetensors"


def _load(path: Path) -> Checkpoint:
    tensors, record = read_tensors(path)
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, key = name.partition("/")
        groups.setdefault(group, {})[key] = tensor
    try:
        return Checkpoint(int(record["step"]), groups, dict(record["state"]))
    except (KeyError, TypeError, ValueError):
        raise DamagedFileError(f"{path} is no checkpoint") from None


def _checkpoints(folder: Path) -> dict[int, Path]:
    if not folder.is_dir():
        return {}
    matches = ((_NAME.fullmatch(path.name), path) for path in folder.iterdir())
    return {int(match[1]): path for match, path in matches if match}


def _short(cause: Exception) -> str:
    return f"{cause}".splitlines()[0] if str(cause) else type(cause).__name__
