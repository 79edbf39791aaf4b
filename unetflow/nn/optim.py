"""Optimisers, learning-rate schedules, and the running average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn

from unetflow.errors import InputError

OptimizerName = Literal["sgd", "adam", "adamw"]
ScheduleName = Literal["constant", "cosine", "poly"]
_POLY_POWER = 0.9


def build_optimizer(
    model: nn.Module, name: OptimizerName, *, learning_rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Return the optimiser of a model's parameters; momentum is that of SGD.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    parameters = model.parameters()
    if name == "sgd":
        return torch.optim.SGD(parameters, learning_rate, momentum=momentum, weight_decay=weight_decay)
    if name == "adam":
        return torch.optim.Adam(parameters, learning_rate, weight_decay=weight_decay)
    if name == "adamw":
        return torch.optim.AdamW(parameters, learning_rate, weight_decay=weight_decay)
    raise InputError(f"optimizer must be sgd, adam or adamw, got '{name}'; use sgd")


def learning_rate_at(schedule: ScheduleName, step: int, steps: int, base: float) -> float:
    """Return the learning rate of a step, counted from 0, in a training of ``steps``.

    Raises
    ------
    InputError
        If the schedule is unknown.

    Examples
    --------
    >>> learning_rate_at("cosine", 50, 100, 1.0), learning_rate_at("constant", 50, 100, 1.0)
    (0.5, 1.0)
    """
    done = min(1.0, step / max(1, steps))
    if schedule == "constant":
        return base
    if schedule == "cosine":
        return round(base * 0.5 * (1 + math.cos(math.pi * done)), 15)
    if schedule == "poly":
        return float(base * (1 - done) ** _POLY_POWER)
    raise InputError(f"schedule must be constant, cosine or poly, got '{schedule}'; use constant")


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's memory as named tensors: ``<parameter number>.<name>``."""
    return {
        f"{number}.{name}": value
        for number, memory in optimizer.state_dict()["state"].items()
        for name, value in memory.items()
        if value is not None
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimiser the memory that `optimizer_tensors` gave.

    Raises
    ------
    KeyError, ValueError, RuntimeError
        If it is the memory of another optimiser or model.
    """
    current = optimizer.state_dict()
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    memory: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, _, name = key.partition(".")
        like = parameters[int(number)]
        # In the parameter's own layout, or each step is slow; a copy, for nobody else to change.
        value = torch.empty_like(like, requires_grad=False).copy_(value) if value.shape == like.shape else value.clone()
        memory.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": memory, "param_groups": current["param_groups"]})


@torch.no_grad()
def update_average(average: nn.Module, model: nn.Module, step: int, decay: float) -> None:
    """Move the averaged weights towards the model's; buffers are copied.

    The first steps count more: the decay is at most ``(1 + step) / (10 + step)``.
    """
    share = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), share)
    for mean, value in zip(average.buffers(), model.buffers(), strict=True):
        mean.copy_(value)
