"""What ranks do in tests; worker processes import it by this name."""

from __future__ import annotations

import errno
import os
import signal
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from unetflow import failpoints
from unetflow.architecture import UNetSpec
from unetflow.nn import tensorfile
from unetflow.nn.augment import Augmentation
from unetflow.nn.group import Group
from unetflow.nn.loop import train
from unetflow.nn.recipe import Recipe
from unetflow.runtime.ranks import Rank
from unetflow.stages.train import join_ranks


def count(folder: str | Path, what: str) -> int:
    return len(list(Path(folder).glob(f"{what}-*")))


def mark(folder: str | Path, what: str) -> None:
    Path(folder, f"{what}-{uuid.uuid4().hex}").touch()


def train_like(rank: Rank, *, folder: str, steps: int, deaths: int = 0, seconds: float = 0.0) -> dict[str, Any]:
    """Count steps in a checkpoint file, and die in the middle ``deaths`` times."""
    checkpoint = Path(folder, "checkpoint")
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    mark(folder, "started")
    for step in range(first, steps):
        if rank.should_stop():
            return {"step": step, "is_stopped": True}
        if step == steps // 2 and count(folder, "started") <= deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(seconds)
        checkpoint.write_text(str(step + 1))
        rank.emit({"step": step, "rank": rank.number, "world": rank.world})
        rank.beat()
    return {"step": steps, "is_stopped": False, "pid": os.getpid()}


class Squares:
    """Patches that every process makes for itself."""

    shard_size = 4

    def __init__(self, n: int, seed: int = 0, length: int = 16) -> None:
        rng = np.random.default_rng(seed)
        self.target = np.zeros((n, length, length), np.uint8)
        for one in self.target:
            y, x = rng.integers(0, length - 5, 2)
            one[y : y + 5, x : x + 5] = 1
        noise = rng.normal(0, 20, self.target.shape)
        self.image = np.clip(60 + 120 * self.target + noise, 0, 255).astype(np.uint8)[:, None]
        # Unevenly ignored, so that a mean of means is not the mean.
        self.weight = np.where(rng.random(self.target.shape) < np.linspace(0, 0.8, n)[:, None, None], 0, 1.0)
        self.weight = (self.weight * (1 + self.target)).astype(np.float32)

    def __len__(self) -> int:
        return len(self.image)

    def read(self, numbers: Any) -> Any:
        index = list(numbers)
        return self.image[index], self.target[index], self.weight[index]


def prepare(image: Any, numbers: Any) -> Any:
    return ((image.astype(np.float32) - 100) / 60).astype(np.float32)


def die(group: Group) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def freeze(group: Group) -> None:
    time.sleep(1.5)  # whom the driver has not heard of yet may be silent for long: two signs of life first
    os.kill(os.getpid(), signal.SIGSTOP)


def hang(group: Group) -> None:
    time.sleep(600)


def fail(*_: Any) -> None:
    raise RuntimeError("a device failed")


def fail_midway(group: Group) -> None:
    """Fail in the next step, while gradients are added up."""
    start = group.start_sum

    def start_and_fail(tensor: torch.Tensor) -> Any:
        one = start(tensor)
        return one if tensor.numel() < 100 else fail(one)

    group.start_sum = start_and_fail  # type: ignore[method-assign]


def die_saving(group: Group) -> None:
    """Be killed in the middle of the next checkpoint."""
    failpoints.arm("half-tensors")


def fill_disk(group: Group) -> None:
    """Have no room for the next checkpoint, and room again after it."""
    write = tensorfile._save

    def save(*_: Any) -> None:
        tensorfile._save = write
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tensorfile._save = save


def refuse(group: Group) -> None:
    raise ValueError("no other try mends it")


FAULTS = {
    "die": die,
    "freeze": freeze,
    "hang": hang,
    "fail": fail,
    "fail midway": fail_midway,
    "die saving": die_saving,
    "fill disk": fill_disk,
    "refuse": refuse,
}


def train_squares(
    rank: Rank,
    *,
    folder: str,
    spec: dict[str, Any],
    recipe: dict[str, Any],
    fault: str = "",
    at_rank: int = 1,
    at_beat: int = 6,
    times: int = 1,
    seconds: float = 0.0,
    deaf: int | None = None,
) -> dict[str, Any]:
    """Train a tiny network for real; one rank meets a fault at a beat, the first ``times`` times.

    The rank ``deaf`` never hears by itself that it should stop.
    """
    mark(folder, f"began{rank.number}")
    n_done = 0

    def beat() -> None:
        nonlocal n_done
        n_done += 1
        rank.beat()
        time.sleep(seconds)
        if fault and rank.number == at_rank and n_done == at_beat and count(folder, "fault") < times:
            mark(folder, "fault")
            FAULTS[fault](group)

    with join_ranks(rank, torch.device("cpu")) as group:
        heard = (lambda: False) if rank.number == deaf else rank.should_stop
        result = train_in(group, folder, spec, recipe, replace(rank, should_stop=heard), beat)
    return {"step": result.step, "is_stopped": result.is_stopped, "world": rank.world, "pid": os.getpid()}


def train_in(group: Group, folder: str, spec: dict[str, Any], recipe: dict[str, Any], rank: Rank, beat: Any) -> Any:
    """Train, and keep what came of it, by rank."""
    augmentation = Augmentation(brightness=0.1, contrast=0.1, noise=0.1)
    result = train(
        Squares(12),
        Squares(5, seed=9),
        spec=UNetSpec.build(**{"depth": 1, "base_channels": 4, "padding": "same", "dropout": 0.3, **spec}),
        recipe=Recipe(
            **{"learning_rate": 1e-2, "momentum": 0.9, "batch_size": 4, "augmentation": augmentation, **recipe}
        ),
        folder=Path(folder, "checkpoints"),
        prepare=prepare,
        device="cpu",
        metrics=Path(folder, "metrics.csv"),
        on_event=rank.emit,
        should_stop=rank.should_stop,
        threads=1,
        group=group,
        beat=beat,
    )
    np.savez(Path(folder, f"state-{group.rank}.npz"), **{name: t.numpy() for name, t in result.state.items()})
    return result
