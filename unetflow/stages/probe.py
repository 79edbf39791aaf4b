"""How long a segmentation will take: some of its blocks are predicted, and nothing is written."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from unetflow.stages.bricks import CHUNK_CACHE_BYTES
from unetflow.stages.outputs import Output, label_names
from unetflow.stages.predict import PredictBlock

if TYPE_CHECKING:
    from unetflow.stages.predict import Image
    from unetflow.stages.segment_plan import Plan

# A block that takes longer is answer enough by itself.
_LONG = 30.0


@dataclass(frozen=True)
class Estimate:
    """How long the predict pass takes.

    Parameters
    ----------
    seconds : float
        Of the whole pass, all workers together.
    n_workers : int
    n_probed : int
        Blocks that were predicted to know it.
    """

    seconds: float
    n_workers: int
    n_probed: int

    def in_words(self) -> str:
        """Return it as a person would say it.

        Examples
        --------
        >>> Estimate(7820.0, 2, 3).in_words()
        'about 2 h 10 min with 2 workers of this machine, from 3 blocks'
        """
        workers = "1 worker" if self.n_workers == 1 else f"{self.n_workers} workers"
        blocks = "1 block" if self.n_probed == 1 else f"{self.n_probed} blocks"
        return f"about {say_seconds(self.seconds)} with {workers} of this machine, from {blocks}"


def estimate(made: Plan, *, n_workers: int | None = None, n_threads: int = 1) -> Estimate:
    """Predict up to three blocks spread over the job, and work out how long all of them take.

    The first block is left out where there are others: it also pays for loading the network.

    Parameters
    ----------
    n_workers : int, optional
        Absent: one a GPU, or one a core.
    n_threads : int
        Tiles that a worker runs at once on a CPU.
    """
    n_blocks = len(made.blocks)
    if not n_blocks:
        return Estimate(0.0, n_workers or 1, 0)
    task = _task(made)
    places = sorted({n_blocks // 2, n_blocks // 4, 3 * n_blocks // 4})
    seconds: list[float] = []
    with _threads(n_threads):
        for number in places:
            block = made.blocks[number]
            start = time.monotonic()
            task.compute(block, task.load(block))
            seconds.append(time.monotonic() - start)
            if seconds[-1] > _LONG:
                break
    later = seconds[1:] or seconds
    workers = min(n_workers or _workers_here(), n_blocks)
    rounds = -(-n_blocks // workers)  # in the last one some workers have nothing to do
    return Estimate(rounds * sum(later) / len(later), workers, len(seconds))


def _task(made: Plan) -> PredictBlock:
    """Return the predict pass with outputs that are never opened; intensities do not change the time."""
    channels = made.spec.in_channels
    return PredictBlock(
        str(made.model),
        uuid.uuid4().hex,
        made.images,
        tuple(made.tiling_of(image) for image in made.images),
        tuple(_output(made, image) for image in made.images),
        made.grids,
        (([0.0] * channels, [1.0] * channels),) * len(made.images),
        made.settings.segment.threshold,
        uuid.uuid4().hex,
        CHUNK_CACHE_BYTES,
        made.batch,
    )


def _output(made: Plan, image: Image) -> Output:
    wanted = set(made.settings.segment.outputs)
    probabilities = (replace(image.volume, dtype=made.settings.segment.dtype),) if "probabilities" in wanted else ()
    names = label_names(made) if wanted & {"classes", "instances"} else []
    return Output(probabilities, tuple((replace(image.volume, dtype="uint8"),) for _ in names), ())


def _workers_here() -> int:
    import torch

    return torch.cuda.device_count() or len(os.sched_getaffinity(0))


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Let a task have as many threads as it has on a worker."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(number)
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def say_seconds(seconds: float) -> str:
    """Write a length of time roughly, as people say it.

    Examples
    --------
    >>> say_seconds(0.4), say_seconds(95), say_seconds(7820), say_seconds(400_000)
    ('1 s', '2 min', '2 h 10 min', '4 d 15 h')
    """
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    return f"{hours // 24} d {hours % 24} h"
