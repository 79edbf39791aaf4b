"""How rows flow through a U-Net, counted: which of them a forward pass holds at a time.

`unetflow.nn.streaming` runs a tile through the network in *rows*, its planes along the first spatial axis.
The counts here are those of that run, without a tensor: they give its buffers their sizes, and
`unetflow.forward_memory` adds them up to bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from unetflow.architecture import UNetSpec

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Held:
    """The most rows that are held at a time, for each level and convolution, and the room for them.

    A buffer has room for half as many rows more than it holds, so that rows seldom move; but for no more
    than will ever come.

    Attributes
    ----------
    contract, join : tuple of tuple of int
        Rows that wait before each convolution of a level.
    skips, ups : tuple of int
        Rows that wait to be joined, and (resized networks) that the up-convolution looks ahead over.
    """

    contract: tuple[tuple[int, ...], ...]
    join: tuple[tuple[int, ...], ...]
    skips: tuple[int, ...]
    ups: tuple[int, ...]


def slab_rows(spec: UNetSpec, shape: Sequence[int], slab_bytes: int) -> tuple[int, ...]:
    """Return how many rows of an image of ``shape`` go through each level at a time.

    As many pooling windows, a power of two of them, as have joined features (float32) of ``slab_bytes``; at
    least one.
    """
    result = []
    for level in range(spec.depth + 1):
        window = spec.pool[level][0] if level < spec.depth else 1
        plane = math.prod(-(-n // s) for n, s in zip(shape[1:], spec.stride(level)[1:], strict=True))
        n_windows = max(1, slab_bytes // (window * 4 * 2 * spec.channels(level) * plane))
        result.append(window << (n_windows.bit_length() - 1))
    return tuple(result)


@dataclass(frozen=True)
class Planes:
    """Voxels of a row before each convolution of a level, and after the last; for both paths."""

    contract: tuple[tuple[int, ...], ...]
    join: tuple[tuple[int, ...], ...]


def planes(spec: UNetSpec, shape: Sequence[int]) -> Planes:
    """Follow the length of each axis but the first through the network."""
    axes = range(1, spec.dims)
    loss = 0 if spec.padding == "same" else 1
    lengths = list(shape[1:])

    def convolutions(level: int, n: int) -> tuple[int, ...]:
        sizes = [math.prod(lengths)]
        for _ in range(n):
            for place, axis in enumerate(axes):
                lengths[place] -= loss * (spec.kernel[level][axis] - 1)
            sizes.append(math.prod(lengths))
        return tuple(sizes)

    contract = []
    for level in range(spec.depth + 1):
        contract.append(convolutions(level, 2))
        if level < spec.depth:
            lengths = [n // spec.pool[level][axis] for n, axis in zip(lengths, axes, strict=True)]
    join = []
    for level in reversed(range(spec.depth)):
        lengths = [n * spec.pool[level][axis] for n, axis in zip(lengths, axes, strict=True)]
        join.append(convolutions(level, 3 if spec.extra_conv and level == 0 else 2))
    return Planes(tuple(contract), tuple(reversed(join)))


def skip_offsets(spec: UNetSpec, n_rows: int) -> tuple[int, ...]:
    """Return, for each level, the row of its skip that the first row from below is joined with."""
    if spec.padding == "same":
        return (0,) * spec.depth
    skips = []
    for level in range(spec.depth + 1):
        n_rows -= 2 * (spec.kernel[level][0] - 1)
        skips.append(n_rows)
        if level < spec.depth:
            n_rows //= spec.pool[level][0]
    offsets = []
    for level in reversed(range(spec.depth)):
        fine = n_rows * spec.pool[level][0]
        offsets.append((skips[level] - fine) // 2)
        n_rows = fine - 2 * (spec.kernel[level][0] - 1)
    return tuple(reversed(offsets))


def rows_held(spec: UNetSpec, n_rows: int, slabs: tuple[int, ...]) -> Held:
    """Return the room for rows that an image of ``n_rows`` needs.

    Longer images need no more: after some slabs as many rows leave as come in.
    """
    strides = [spec.stride(level)[0] for level in range(spec.depth + 1)]
    enough = 6 * sum(s * h for s, h in zip(strides, slabs, strict=True)) + 4 * spec.margin[0] + 4 * strides[-1]
    enough += 4 * sum(max(spec.kernel[level][0] - 1, 1) * s for level, s in enumerate(strides))
    stride = spec.total_stride[0]
    return _count(spec, n_rows - max(0, (n_rows - enough) // stride * stride), slabs)


@lru_cache(maxsize=4096)
def _count(spec: UNetSpec, n_rows: int, slabs: tuple[int, ...]) -> Held:
    counter = _Counter(spec, n_rows, slabs)
    for start in range(0, n_rows, slabs[0]):
        stop = min(n_rows, start + slabs[0])
        counter.contract[0].feed(stop - start)
        counter.down(0, is_last=stop == n_rows)
    return Held(
        tuple(chain.room() for chain in counter.contract),
        tuple(chain.room() for chain in counter.join),
        tuple(_room(most, all_) for most, all_ in zip(counter.most_skip, counter.stored, strict=True)),
        tuple(_room(most, all_) for most, all_ in zip(counter.most_up, counter.repeated, strict=True)),
    )


def _room(most: int, n_ever: int) -> int:
    return min(most + -(-most // 2), n_ever)


class _Chain:
    """Counts of the rows before each convolution."""

    def __init__(self, lengths: list[int], before: list[int]) -> None:
        self.lengths, self.before = lengths, before
        self.held = list(before)
        self.most, self.n_ever = list(before), list(before)
        self.n_fed = 0

    def room(self) -> tuple[int, ...]:
        return tuple(_room(most, n) for most, n in zip(self.most, self.n_ever, strict=True))

    def feed(self, n: int) -> None:
        self.n_fed += n
        self.take(n, 0)

    def take(self, n: int, number: int) -> None:
        self.held[number] += n
        self.n_ever[number] += n
        self.most[number] = max(self.most[number], self.held[number])

    def run(self, *, is_last: bool) -> int:
        n = self.n_fed = 0
        for number, (length, before) in enumerate(zip(self.lengths, self.before, strict=True)):
            if number:
                self.take(n, number)
            if is_last:
                self.take(before, number)
            n = max(0, self.held[number] - length + 1)
            self.held[number] -= n
        return n


class _Counter:
    """What `unetflow.nn.streaming.RowStream` does, with counts for rows."""

    def __init__(self, spec: UNetSpec, n_rows: int, slabs: tuple[int, ...]) -> None:
        self.spec, self.slabs = spec, slabs
        levels = range(spec.depth)
        n_extra = bool(spec.extra_conv)
        self.contract = [self._chain(level, 2) for level in range(spec.depth + 1)]
        self.join = [self._chain(level, 2 + (n_extra and level == 0)) for level in levels]
        self.offsets = skip_offsets(spec, n_rows)
        self.stored, self.pooled, self.joined, self.dropped = ([0] * spec.depth for _ in range(4))
        self.looked_ahead, self.repeated = [0] * spec.depth, [0] * spec.depth
        self.most_skip, self.most_up = [0] * spec.depth, [0] * spec.depth

    def _chain(self, level: int, n: int) -> _Chain:
        length = self.spec.kernel[level][0]
        return _Chain([length] * n, [length // 2 if self.spec.padding == "same" else 0] * n)

    def down(self, level: int, *, is_last: bool) -> None:
        chain = self.contract[level]
        if chain.n_fed < self.slabs[level] and not is_last:
            return
        n = chain.run(is_last=is_last)
        if level == self.spec.depth:
            self.up(level - 1, n, is_last=is_last)
            return
        self.stored[level] += n
        self.most_skip[level] = max(self.most_skip[level], self.stored[level] - self.dropped[level])
        n_windows = (self.stored[level] - self.pooled[level]) // self.spec.pool[level][0]
        self.contract[level + 1].feed(n_windows)
        self.pooled[level] += n_windows * self.spec.pool[level][0]
        self.drop(level)
        self.down(level + 1, is_last=is_last)

    def drop(self, level: int) -> None:
        done = min(self.joined[level] + self.offsets[level], self.pooled[level])
        self.dropped[level] = max(self.dropped[level], done)

    def up(self, level: int, n_coarse: int, *, is_last: bool) -> None:
        if level < 0:
            return
        window = self.spec.pool[level][0]
        most = max(1, self.slabs[level] // window)
        parts = [min(most, n_coarse - start) for start in range(0, n_coarse, most)] or [0]
        for number, part in enumerate(parts, 1):
            ends = is_last and number == len(parts)
            fine = part * window
            if self.spec.upsample == "resize":
                n = fine + (window - 1 if ends else 0)
                self.repeated[level] += n
                held = self.looked_ahead[level] + n
                self.most_up[level] = max(self.most_up[level], held)
                fine = max(0, held - window + 1)
                self.looked_ahead[level] = held - fine
            self.join[level].feed(fine)
            self.joined[level] += fine
            self.drop(level)
            self.up(level - 1, self.join[level].run(is_last=ends), is_last=ends)
