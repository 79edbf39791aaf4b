r"""Which block goes to which worker: neighbours to the same one, and nobody idles.

::

    bricks of the grid      lanes, one a worker          no brick is left
    +-----+-----+-----+     A  [0 1 2 3 4 5]             A  [. . . . 4 5]   half of the longest
    |  0  |  1  |  2  |     B  [6 7 8 9 . .]   ---->     B  [. . 8 9]       lane's end goes to
    +-----+-----+-----+     (brick 2 is not open)        C  [10 11]         whoever has nothing

A *brick* is a part of the pass whose blocks are neighbours; a *lane* is what one worker still
has to do of one. Blocks are made when they are taken: a lane is two positions in its brick.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from unetflow.geometry import Block, Shape

BrickShape = Shape | Sequence[Shape]  # of all grids, or one for each


class Blocks(Protocol):
    """Blocks by position: a :class:`~unetflow.geometry.BlockGrid`, a brick or a sequence."""

    def __len__(self) -> int: ...
    def __getitem__(self, position: int, /) -> Block: ...


@runtime_checkable
class Bricked(Blocks, Protocol):
    """Blocks that can be taken apart into bricks of a shape: blocks along each axis, in the caller's terms."""

    def bricks(self, shape: Any, /) -> Iterable[Blocks]:
        """Yield bricks on demand."""


class Lane:
    """What is left of a brick: positions ``start`` to ``stop - 1``, and blocks that came back.

    Parameters
    ----------
    done : collection of int
        Numbers of blocks that are passed over.
    """

    def __init__(self, brick: Blocks, start: int, stop: int, done: Collection[int]) -> None:
        self.brick, self.start, self.stop, self.done = brick, start, stop, done
        self.returned: deque[Block] = deque()
        self.n_skipped = 0

    def __len__(self) -> int:
        return self.stop - self.start + len(self.returned)

    def peek(self) -> Block | None:
        """Return the next block without taking it, or None."""
        while not self.returned and self.start < self.stop:
            block = self.brick[self.start]
            self.start += 1
            if block.number in self.done:
                self.n_skipped += 1
            else:
                self.returned.append(block)
        return self.returned[0] if self.returned else None

    def take(self, n_most: int) -> list[Block]:
        """Take the next blocks, at most ``n_most``."""
        taken: list[Block] = []
        while len(taken) < n_most and self.peek() is not None:
            taken.append(self.returned.popleft())
        return taken

    def cut(self, n_blocks: int) -> Lane:
        """Cut off the last ``n_blocks``, or what came back where nothing else is left."""
        n_cut = min(n_blocks, self.stop - self.start)
        part = Lane(self.brick, self.stop - n_cut, self.stop, self.done)
        self.stop -= n_cut
        if not n_cut:
            part.returned, self.returned = self.returned, part.returned
        return part


class Lanes:
    """The blocks of a pass that were never sent, by worker.

    Parameters
    ----------
    blocks : Blocks
    brick : tuple of int, optional
        Blocks along each axis of what a worker does at a stretch. Without it all blocks are one brick.
    done : collection of int
        Numbers of blocks that an earlier run finished.
    """

    def __init__(self, blocks: Blocks | Bricked, brick: BrickShape | None, done: Collection[int]) -> None:
        self._done = done
        self._bricks = iter(_bricks_of(blocks, brick))
        self._lanes: dict[str, Lane] = {}
        self._orphans: deque[Lane] = deque()
        self._n_skipped = 0

    @property
    def n_skipped(self) -> int:
        """Number of done blocks that were passed over so far."""
        return self._n_skipped + sum(lane.n_skipped for lane in (*self._lanes.values(), *self._orphans))

    def keep(self, workers: Collection[str]) -> None:
        """Let the lanes of workers that are gone be taken over."""
        for worker in [w for w in self._lanes if w not in workers]:
            self._orphans.append(self._lanes.pop(worker))

    def take(self, worker: str, n_most: int, n_workers: int = 1) -> list[Block]:
        """Take the next blocks for a worker: of its own lane, of a new brick, or of the longest other lane."""
        while (lane := self._lane_of(worker, n_workers)) is not None:
            if taken := lane.take(n_most):
                return taken
            self._close(worker)
        return []

    def peek(self, worker: str) -> Block | None:
        """Return the block with which a worker goes on in its lane, or None."""
        lane = self._lanes.get(worker)
        return None if lane is None else lane.peek()

    def give_back(self, worker: str, blocks: Iterable[Block]) -> None:
        """Put blocks that were not started at the head of the worker's lane."""
        lane = self._lanes.get(worker)
        if lane is None:
            lane = Lane((), 0, 0, self._done)
            self._orphans.append(lane)
        lane.returned.extendleft(reversed(list(blocks)))

    def is_empty(self) -> bool:
        """Say whether every block was taken or is done; passes over the done ones."""
        while not any(lane.peek() for lane in (*self._lanes.values(), *self._orphans)):
            if (brick := next(self._bricks, None)) is None:
                return True
            for lane in self._orphans:
                self._n_skipped += lane.n_skipped
            self._orphans = deque([Lane(brick, 0, len(brick), self._done)])
        return False

    def _lane_of(self, worker: str, n_workers: int) -> Lane | None:
        if worker not in self._lanes and (lane := self._open(n_workers)) is not None:
            self._lanes[worker] = lane
        return self._lanes.get(worker)

    def _open(self, n_workers: int) -> Lane | None:
        """Take over a lane, open a brick, or take a worker's share of the longest lane, at most half of it."""
        if self._orphans:
            return self._orphans.popleft()
        if (brick := next(self._bricks, None)) is not None:
            return Lane(brick, 0, len(brick), self._done)
        longest = max(self._lanes.values(), key=len, default=None)
        if not longest:
            return None
        share = -(-sum(map(len, self._lanes.values())) // n_workers)
        return longest.cut(max(1, min(share, len(longest) // 2)))

    def _close(self, worker: str) -> None:
        self._n_skipped += self._lanes.pop(worker).n_skipped


def _bricks_of(blocks: Blocks | Bricked, brick: BrickShape | None) -> Iterable[Blocks]:
    if brick is None:
        return (blocks,)
    if not isinstance(blocks, Bricked):
        raise TypeError(f"blocks must have a method 'bricks' to be worked on in bricks, got {type(blocks).__name__}")
    return blocks.bricks(brick)
