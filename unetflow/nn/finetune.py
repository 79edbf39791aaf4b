"""The weights that fine-tuning begins with: those of a model, and fresh heads where it has none that fit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unetflow.architecture import UNetSpec
from unetflow.nn.supervision import training_network

_HEAD = "head."


def starting_weights(
    spec: UNetSpec, state: Mapping[str, Tensor], *, seed: int, deep_supervision: bool = False, new_head: bool = False
) -> dict[str, Tensor]:
    """Return all weights of the network to train.

    Parameters
    ----------
    spec : UNetSpec
        Of the network to train.
    state : mapping of str to Tensor
        Weights of a model that differs in its head at most (`differences`).
    seed : int
        Of what is drawn anew: the heads that deep supervision adds, and a new head.
    deep_supervision : bool
    new_head : bool
        Leave the model's own head, for instance because the classes are others.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        drawn = training_network(spec, deep_supervision=deep_supervision).state_dict()
    taken = {name: tensor for name, tensor in state.items() if not (new_head and name.startswith(_HEAD))}
    return {**drawn, **taken}


def differences(mine: UNetSpec, theirs: UNetSpec, *, new_head: bool = False) -> dict[str, tuple[object, object]]:
    """Return in which numbers two networks cannot share their weights: theirs and mine by name.

    Padding and dropout have no weights. With a new head, neither do the classes.

    Examples
    --------
    >>> differences(UNetSpec.build(out_channels=3), UNetSpec.build(dropout=0.0))
    {'out_channels': (2, 3)}
    """
    free = {"padding", "dropout"} | ({"out_channels", "head"} if new_head else set())
    ours, others = mine.to_dict(), theirs.to_dict()
    return {name: (others[name], ours[name]) for name in ours if name not in free and others[name] != ours[name]}
