"""What the blocks of a pass took, folded from their reports: slowest, by worker, over time.

Reports are read twice, one by one, so that memory does not grow with the number of blocks.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

_N_SLOWEST = 8
_N_BINS = 240
_MOST_BARS = 1500  # blocks that are drawn one by one

Reports = Callable[[], Iterator[tuple[int, dict[str, Any]]]]


@dataclass
class Worker:
    """Blocks, seconds and bytes of one worker."""

    blocks: int = 0
    seconds: float = 0.0
    bytes_read: int = 0
    peak: int = 0


@dataclass
class Blocks:
    """The blocks of a pass.

    Parameters
    ----------
    start, end : float
        Seconds since 1970 of the first begin and the last end; both 0 where reports do not tell.
    slowest : list of (seconds, number, worker)
        The slowest first.
    bars : dict of str to list of (float, float)
        Begin and end of each block by worker; empty where they are too many.
    """

    n: int = 0
    seconds: float = 0.0
    bytes_read: int = 0
    start: float = 0.0
    end: float = 0.0
    slowest: list[tuple[float, int, str]] = field(default_factory=list)
    workers: dict[str, Worker] = field(default_factory=lambda: defaultdict(Worker))
    bars: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    _bins: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    @property
    def mean(self) -> float | None:
        """Seconds that a block took."""
        return self.seconds / self.n if self.n else None

    def busy_share(self, worker: str) -> npt.NDArray[np.float64]:
        """Return for each of 240 spans of the time how much of it a worker computed."""
        return self._bins.get(worker, np.zeros(_N_BINS))

    def _add(self, number: int, report: dict[str, Any]) -> None:
        took = float(report.get("seconds", 0.0))
        name = report.get("worker", "")
        self.n += 1
        self.seconds += took
        self.bytes_read += report.get("fetched", 0)
        heapq.heappush(self.slowest, (took, number, name))
        if len(self.slowest) > _N_SLOWEST:
            heapq.heappop(self.slowest)
        if "began" in report:
            worker = self.workers[name]
            worker.blocks += 1
            worker.seconds += took
            worker.bytes_read += report.get("fetched", 0)
            worker.peak = max(worker.peak, report.get("peak", 0))
            self.start = min(self.start or report["began"], report["began"])
            self.end = max(self.end, report["began"] + took)

    def _place(self, report: dict[str, Any]) -> None:
        name, begun, took = report["worker"], report["began"], report["seconds"]
        if self.n <= _MOST_BARS:
            self.bars[name].append((begun, begun + took))
        bins = self._bins.setdefault(name, np.zeros(_N_BINS))
        width = (self.end - self.start) / _N_BINS
        edges = self.start + width * np.arange(_N_BINS + 1)
        bins += np.clip(np.minimum(edges[1:], begun + took) - np.maximum(edges[:-1], begun), 0, None) / width


def fold_blocks(reports: Reports) -> Blocks:
    """Fold the reports of a pass.

    Parameters
    ----------
    reports : callable
        Yields number and report of each block, anew at each call.
    """
    blocks = Blocks()
    for number, report in reports():
        blocks._add(number, report)
    blocks.slowest.sort(reverse=True)
    if blocks.workers and blocks.end > blocks.start:
        for _, report in reports():
            if "began" in report:
                blocks._place(report)
    return blocks
