"""Fine-tuning: a training that begins with the weights of a model."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from unetflow.architecture import UNetSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """A model whose weights are the start.

    Parameters
    ----------
    path : str
        The model file.
    new_head : bool
        Draw the last layer anew.
    """

    path: str
    new_head: bool = False

    @property
    def digest(self) -> str:
        """What the start depends on."""
        return hashlib.sha256(Path(self.path).read_bytes()).hexdigest() + (", new head" if self.new_head else "")

    def weights(self, spec: UNetSpec, *, seed: int, deep_supervision: bool) -> dict[str, Tensor]:
        """Return all weights that the training begins with."""
        from unetflow.nn.checkpoint import load_model
        from unetflow.nn.finetune import starting_weights

        state = load_model(self.path)[0].state_dict()
        return starting_weights(
            spec, state, seed=seed, deep_supervision=deep_supervision, new_head=self.new_head
        )


def start_from(path: str | None, new_head: bool, spec: UNetSpec, facts: dict[str, Any]) -> Start | None:
    """Check that a model's weights fit the network and the dataset.

    Parameters
    ----------
    path : str or None
        A model file or a run folder.
    new_head : bool
    spec : UNetSpec
        Of the network to train.
    facts : dict
        The dataset's record.

    Raises
    ------
    InputError
        If there is no such model, or its weights do not fit.
    """
    if path is None:
        if new_head:
            raise InputError("--new-head draws the last layer of a model anew, got no model; name it with --from")
        return None
    from unetflow.nn.checkpoint import MODEL_NAME, load_model
    from unetflow.nn.finetune import differences

    model, record = load_model(path)
    differing = differences(spec, model.spec, new_head=new_head)
    if differing:
        words = "; ".join(f"{name} {theirs} there, {mine} here" for name, (theirs, mine) in differing.items())
        cure = "give --new-head to draw the last layer anew" if set(differing) <= {"out_channels", "head"} else (
            "write the numbers of that model into [model], and prepare again"
        )  # fmt: skip
        raise InputError(f"--from needs a model of the same network, got {path} with {words}; {cure}")
    if record.get("normalise", facts["normalise"]) != facts["normalise"]:
        log.warning(
            "the model to fine-tune saw images normalised by %s, this dataset by %s; "
            'prepare with [prepare] normalise = "%s" for a better start',
            record["normalise"], facts["normalise"], record["normalise"],
        )  # fmt: skip
    file = Path(path)
    return Start(str((file / MODEL_NAME if file.is_dir() else file).absolute()), new_head)
