"""What the training loop costs beside the bare step, and what a second rank brings.

The loop is `unetflow.nn.loop.train` as `unetflow train` runs it: patches read, augmented and normalised by
its thread, losses and gradient norms told; its first steps, validations and checkpoints do not count. The bare
step is forward, weighted loss, backward and optimiser on one batch that lies in memory, in the same layout and
arithmetic. Both run by turns in this process, which keeps freed memory as a worker does: fetching buffers anew
from the system takes a fifth of a step, and not the same of both. Two ranks are two Dask workers of one thread, which
share the batch that one such worker has alone; beside them stands one rank with the threads of both,
which is what `unetflow train` starts on one machine. These three run by turns too.

    python benchmarks/train_loop.py [--rounds 3] [--steps 8] [--what all] [--quick]

``--quick`` tries everything once with small networks, judges nothing and writes no report.

Seconds are the median of all steps. A busy machine shows in the CPU time that the same steps took, which is
given beside them.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import numpy as np
import torch
from report import write_report

from unetflow.architecture import UNetSpec
from unetflow.nn.augment import Augmentation
from unetflow.nn.device import arithmetic, pick_device, pick_precision
from unetflow.nn.group import Group
from unetflow.nn.loop import train
from unetflow.nn.loss import weighted_loss
from unetflow.nn.optim import build_optimizer
from unetflow.nn.placement import Placement
from unetflow.nn.recipe import Recipe
from unetflow.nn.unet import UNet, training_format
from unetflow.runtime.cluster import open_client
from unetflow.runtime.environment import ALLOCATOR
from unetflow.runtime.ranks import Rank, run_ranks
from unetflow.stages.train import join_ranks

SKIPPED = 2  # first steps of each round: caches and memory pools fill
LOOP_BAR, RANKS_BAR, WAIT_BAR = 0.95, 1.7, 0.05


@dataclass(frozen=True)
class Case:
    """A network and its patches."""

    name: str
    spec: dict[str, Any]
    length: int
    batch: int

    def build(self) -> UNetSpec:
        return UNetSpec.build(**self.spec)

    def patches(self) -> Patches:
        shape = (self.length,) * self.build().dims
        return Patches(shape, self.build().output_shape(shape))

    def recipe(self, steps: int) -> Recipe:
        return Recipe(
            steps=steps,
            learning_rate=1e-3,
            batch_size=self.batch,
            optimizer="adam",
            augmentation=Augmentation(brightness=0.1, contrast=0.1, noise=0.1),
            checkpoint_minutes=1e9,
        )


CASES = {
    "2d": Case("2-D, base 32, depth 3", {"dims": 2, "depth": 3, "base_channels": 32, "padding": "same"}, 256, 2),
    "3d": Case("3-D, base 16, depth 2", {"dims": 3, "depth": 2, "base_channels": 16, "padding": "same"}, 64, 2),
}

QUICK_CASES = {
    "2d": Case("2-D, base 4, depth 2", {"dims": 2, "depth": 2, "base_channels": 4, "padding": "same"}, 64, 2),
    "3d": Case("3-D, base 4, depth 1", {"dims": 3, "depth": 1, "base_channels": 4, "padding": "same"}, 16, 2),
}


@dataclass
class Patches:
    """Noise, as patches in memory."""

    shape: tuple[int, ...]
    output: tuple[int, ...]
    n: int = 16
    shard_size: int = 4
    arrays: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        self.arrays = [
            rng.integers(0, 256, (self.n, 1, *self.shape), np.uint8),
            rng.integers(0, 2, (self.n, *self.output), np.uint8),
            rng.uniform(0.5, 2, (self.n, *self.output)).astype(np.float32),
        ]

    def __len__(self) -> int:
        return self.n

    def read(self, numbers: Any) -> Any:
        return tuple(array[list(numbers)] for array in self.arrays)


def normalise(image: Any, numbers: Any) -> Any:
    return (image.astype(np.float32) - np.float32(128)) / np.float32(74)


@dataclass
class Clock:
    """Wall and CPU seconds of each step, this process's threads together."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    _last: tuple[float, float] | None = None

    def tick(self) -> None:
        now = time.perf_counter(), time.process_time()
        if self._last is not None:
            self.wall.append(now[0] - self._last[0])
            self.cpu.append(now[1] - self._last[1])
        self._last = now

    def take(self, other: Clock) -> None:
        self.wall += other.wall[SKIPPED:]
        self.cpu += other.cpu[SKIPPED:]


def time_loop(
    case: Case, steps: int, threads: int | None = None, group: Group | None = None
) -> tuple[Clock, float]:
    """Return the times of the loop's steps, and the share in which they waited for patches."""
    clock, waits = Clock(), []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            clock.tick()
            waits.append(event["wait"])

    with tempfile.TemporaryDirectory() as folder:
        train(
            case.patches(), None, spec=case.build(), recipe=case.recipe(steps), folder=folder, prepare=normalise,
            on_event=listen, threads=threads, group=group,
        )  # fmt: skip
    return clock, median(waits[SKIPPED:] or [0.0])  # rank 0 alone is told


def time_bare(case: Case, steps: int) -> Clock:
    """Return the times of bare steps on one batch in memory."""
    spec, device, recipe = case.build(), pick_device(), case.recipe(steps)
    layout = training_format(spec.dims, device)
    model = UNet(spec).to(device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = build_optimizer(
        model, recipe.optimizer, learning_rate=recipe.learning_rate, momentum=0.9, weight_decay=0.0
    )
    place = Placement(device, layout, spec.dims).put
    image, target, weight = case.patches().read(range(case.batch))
    batch = place(normalise(image, None)), place(target), place(weight)
    precision, clock = pick_precision("auto", device), Clock()
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        with arithmetic(precision, device):
            logits = model(batch[0])
        weighted_loss(logits, batch[1], batch[2], head=spec.head).backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        clock.tick()
    return clock


def loop_row(case: Case, rounds: int, steps: int) -> list[dict[str, str]]:
    ours, theirs, waits = Clock(), Clock(), []
    for _ in range(rounds):
        clock, wait = time_loop(case, steps + SKIPPED + 1)
        ours.take(clock)
        waits.append(wait)
        theirs.take(time_bare(case, steps + SKIPPED + 1))
    share, wait = median(theirs.wall) / median(ours.wall), median(waits)
    return [
        {
            "what": f"{case.name}, batch {case.batch} of {case.length}: loop against bare step",
            "ours": said(ours, case.batch),
            "theirs": said(theirs, case.batch),
            "ratio": f"{share:.3f} (CPU time: {median(theirs.cpu) / median(ours.cpu):.3f})",
            "bar": f"at least {LOOP_BAR}",
            "holds": "yes" if share >= LOOP_BAR else "NO",
        },
        {
            "what": f"{case.name}: share of a step that waits for patches",
            "ours": f"{wait:.3f}",
            "theirs": "",
            "ratio": "",
            "bar": f"below {WAIT_BAR}",
            "holds": "yes" if wait < WAIT_BAR else "NO",
        },
    ]


def rank_steps(rank: Rank, *, case: Case, steps: int, threads: int) -> tuple[Clock, float]:
    """Time the loop in one of several ranks."""
    with join_ranks(rank, torch.device("cpu")) as group:
        return time_loop(case, steps, threads=threads, group=group)


def ranks_rows(case: Case, rounds: int, steps: int) -> list[dict[str, str]]:
    clocks = {(1, 1): Clock(), (2, 1): Clock(), (1, 2): Clock()}  # by ranks, and threads of each
    with open_client("local", workers=2, threads=1) as client:
        for _ in range(rounds):
            for (n, threads), clock in clocks.items():
                kwargs = {"case": case, "steps": steps + SKIPPED + 1, "threads": threads}
                clock.take(run_ranks(rank_steps, kwargs, client, most=n)[0])
    one, two, threaded = (median(clocks[key].wall) for key in clocks)
    return [
        {
            "what": f"{case.name}: two gloo ranks of one thread against one, global batch {case.batch}",
            "ours": said(clocks[2, 1], case.batch),
            "theirs": said(clocks[1, 1], case.batch),
            "ratio": f"{one / two:.2f} (CPU time of a rank: {median(clocks[1, 1].cpu) / median(clocks[2, 1].cpu):.2f})",
            "bar": f"at least {RANKS_BAR}",
            "holds": "yes" if one / two >= RANKS_BAR else "NO",
        },
        {
            "what": f"{case.name}: one rank of two threads against two gloo ranks of one",
            "ours": said(clocks[1, 2], case.batch),
            "theirs": said(clocks[2, 1], case.batch),
            "ratio": f"{two / threaded:.2f}",
            "bar": "",
            "holds": "",
        },
    ]


def said(clock: Clock, batch: int) -> str:
    seconds = median(clock.wall)
    return f"{batch / seconds:.2f} samples/s, {seconds:.3f} s a step ({median(clock.cpu):.2f} s CPU)"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--what", choices=["all", "loop", "ranks"], default="all")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):  # read when a process starts
        os.execve(sys.executable, sys.orig_argv, {**os.environ, **ALLOCATOR})
    if options.quick:
        options.rounds, options.steps = 1, 2
    rows: list[dict[str, str]] = []
    for case in (QUICK_CASES if options.quick else CASES).values():
        if options.what != "ranks":
            rows += loop_row(case, options.rounds, options.steps)
        if options.what != "loop" and not torch.cuda.is_available():
            rows += ranks_rows(case, options.rounds, options.steps)
    if options.quick:
        for row in rows:
            print(f"{row['what']}: {row['ours']} | {row['theirs']} | {row['ratio']}")
        return 0
    note = (
        f"Median of {options.steps} steps in each of {options.rounds} rounds by turns, after {SKIPPED} that do not "
        f"count; {torch.get_num_threads()} threads but for the ranks; Adam, weighted cross entropy, flips, turns, "
        "brightness, contrast, noise."
    )
    name = "train-loop" if options.what == "all" else f"train-loop-{options.what}"
    write_report(name, rows, note)
    return 1 if any(row["holds"] == "NO" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
