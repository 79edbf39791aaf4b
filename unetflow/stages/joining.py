"""Join open fragments to components on the driver, one slab of blocks in memory at a time.

A *slab* is all blocks at one position along the first axis. What happens in it concerns the next
slab only through components that touch their common face, which are *lifted*:

::

    up        slab by slab: join its open fragments, and what was lifted, by the pairs that touch
    down      from the last slab back: first voxel and size of each component, whole
    publish   slab by slab: the number given to a component where it starts, told to all its fragments

Between sweeps a slab's part lies in the store, so memory follows one slab's faces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.geometry import BlockGrid
from unetflow.stages.tables import Rows

if TYPE_CHECKING:
    from unetflow.stages.pieces import Pieces

Integers = npt.NDArray[np.int64]

KEY_BITS = 32


@dataclass(frozen=True)
class OpenFragments:
    """What the blocks told of their open fragments, a row a block.

    Parameters
    ----------
    table : Rows
        Local id; first voxel in the volume; size; whether the volume's border is touched.
    pairs : Rows
        Keys (block number << 32 | local id) of fragments that touch over the far faces of a block.
    joined : Rows
        Written here: first voxel, size and border of the component of each.
    published : Rows
        Written here: the number of the component of each, 0 where it was dropped.
    n : ndarray of int64
        Open fragments of each block.
    """

    table: Rows
    pairs: Rows
    joined: Rows
    published: Rows
    n: Integers


@dataclass(frozen=True)
class _Slab:
    """The open fragments of a slab, in the order of their keys."""

    blocks: Integers
    keys: Integers
    facts: Integers

    def split(self, values: Integers) -> Iterator[tuple[int, Integers]]:
        """Yield the part of each block of ``(columns, n)`` values."""
        ends = np.searchsorted(self.keys, (self.blocks + 1) << KEY_BITS)
        for number, start, stop in zip(self.blocks, [0, *ends], ends, strict=False):
            yield int(number), values[:, start:stop]


def join_fragments(pieces: Pieces, index: int, found: OpenFragments, scratch: Rows) -> None:
    """Find the component of each open fragment of a volume.

    Parameters
    ----------
    scratch : Rows
        Five columns and a row a slab, for what lies between the two sweeps.
    """
    slabs = _slabs(pieces, index)
    facts, pairs = np.zeros((3, 0), np.int64), np.zeros((2, 0), np.int64)
    keys, component = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for number, blocks in enumerate(slabs):
        own, lifted = _read(found, blocks), np.full(facts.shape[1], -1, np.int64)
        touching = np.concatenate([pairs, _pairs(found, own.blocks)], axis=1)
        is_here = (touching >> KEY_BITS < blocks.stop).all(axis=0)
        # Corners show pairs of the slab below too, which are joined there.
        here, pairs = touching[:, is_here & (touching[1] >> KEY_BITS >= blocks.start)], touching[:, ~is_here]
        a = _elements(here[0], own.keys, keys, component)
        b = np.searchsorted(own.keys, here[1])
        rising = np.unique(-1 - a[a < 0])
        size = len(own.keys)
        a = np.where(a < 0, size + np.searchsorted(rising, -1 - a), a)
        joined = _join(size + len(rising), a, b)
        lifted[rising] = joined[size:]
        if number:
            _store(scratch, number - 1, component, facts, lifted)
        facts = _total(joined, np.concatenate([own.facts, facts[:, rising]], axis=1))
        keys, component = own.keys, joined[:size]
    _store(scratch, len(slabs) - 1, component, facts, np.full(facts.shape[1], -1, np.int64))
    _hand_down(found, slabs, scratch)


def _hand_down(found: OpenFragments, slabs: list[range], scratch: Rows) -> None:
    """Give whole facts to the fragments of each slab, from the last one back."""
    above = np.zeros((3, 0), np.int64)
    for number in reversed(range(len(slabs))):
        own = _read(found, slabs[number])
        component, facts, lifted = _load(scratch, number)
        is_lifted = lifted >= 0
        facts[:, is_lifted] = above[:, lifted[is_lifted]]
        for block, part in own.split(facts[:, component]):
            found.joined.write(block, part)
        above = facts


def publish_numbers(pieces: Pieces, index: int, found: OpenFragments, numbered: Rows) -> None:
    """Tell each open fragment the number that its component got where it starts.

    Parameters
    ----------
    numbered : Rows
        Local ids and numbers of the components that start in a block.
    """
    firsts, numbers = np.zeros(0, np.int64), np.zeros(0, np.int64)
    for blocks in _slabs(pieces, index):
        own = _read(found, blocks)
        if len(own.keys) == 0:
            continue
        whole = np.concatenate([found.joined.read(int(n))[0] for n in own.blocks])
        told = np.concatenate([_of_open(numbered, n, keys[0]) for n, keys in own.split(own.keys[None])], axis=1)
        at, is_told = _find(told[0], own.keys)
        firsts = np.concatenate([firsts, whole[is_told]])
        numbers = np.concatenate([numbers, told[1, at[is_told]]])
        order = np.argsort(firsts)
        firsts, numbers = firsts[order], numbers[order]
        at, is_kept = _find(firsts, whole)
        result = np.zeros(len(whole), np.int64)
        result[is_kept] = numbers[at[is_kept]]
        for block, part in own.split(result[None]):
            found.published.write(block, part)
        # A component that is not in this slab is in no later one: what is connected has no gaps.
        firsts, at = np.unique(whole[is_kept], return_index=True)
        numbers = result[is_kept][at]


def _of_open(numbered: Rows, block: int, keys: Integers) -> Integers:
    """Read keys and numbers of the components that start in a block, of its open fragments (sorted keys) alone."""
    row = numbered.read(block) + np.array([[block << KEY_BITS], [0]])
    told: Integers = row[:, _find(keys, row[0])[1]]
    return told


def _slabs(pieces: Pieces, index: int) -> list[range]:
    """Return the numbers of the blocks of each slab of a volume."""
    grid = pieces.grids[index]
    assert isinstance(grid, BlockGrid)
    width = len(grid) // max(1, grid.counts[0])
    start = pieces.first[index]
    return [range(start + i * width, start + (i + 1) * width) for i in range(grid.counts[0])]


def _read(found: OpenFragments, blocks: range) -> _Slab:
    """Read the open fragments of a slab."""
    numbers = np.arange(blocks.start, blocks.stop)[found.n[blocks.start : blocks.stop] > 0]
    rows = [found.table.read(int(n)) for n in numbers]
    keys = [row[0] | int(n) << KEY_BITS for n, row in zip(numbers, rows, strict=True)]
    facts = [row[1:] for row in rows]
    empty = np.zeros((3, 0), np.int64)
    return _Slab(numbers, np.concatenate([empty[0], *keys]), np.concatenate([empty, *facts], axis=1))


def _pairs(found: OpenFragments, blocks: Integers) -> Integers:
    return np.concatenate([np.zeros((2, 0), np.int64), *(found.pairs.read(int(n)) for n in blocks)], axis=1)


def _elements(wanted: Integers, own: Integers, below: Integers, component: Integers) -> Integers:
    """Return the place of keys among those of this slab, or -1 - component for those of the one below."""
    at, is_own = _find(own, wanted)
    result = np.where(is_own, at, 0)
    result[~is_own] = -1 - component[np.searchsorted(below, wanted[~is_own])]
    return np.asarray(result, np.int64)


def _join(n: int, a: Integers, b: Integers) -> Integers:
    from unetflow.numerics.labelling import join

    return join(n, np.stack([a, b], axis=1))


def _total(component: Integers, facts: Integers) -> Integers:
    """Add up first voxel, size and border of each component."""
    n = int(component.max(initial=-1)) + 1
    first, size, border = np.full(n, np.iinfo(np.int64).max), np.zeros(n, np.int64), np.zeros(n, np.int64)
    np.minimum.at(first, component, facts[0])
    np.add.at(size, component, facts[1])
    np.maximum.at(border, component, facts[2])
    return np.stack([first, size, border])


def _find(values: Integers, wanted: Integers) -> tuple[Integers, npt.NDArray[np.bool_]]:
    """Return where each wanted value stands among sorted ones, and whether it is there."""
    at = np.searchsorted(values, wanted)
    is_there = at < len(values)
    is_there[is_there] = values[at[is_there]] == wanted[is_there]
    return at, is_there


def _store(scratch: Rows, slab: int, component: Integers, facts: Integers, lifted: Integers) -> None:
    """Keep a slab's part: one row that holds the length of two lists, and both."""
    n, m = len(component), len(lifted)
    row = np.zeros((5, max(n, m, 1)), np.int64)
    row[0, :n], row[1, :m], row[2:, :m] = component, lifted, facts
    row[0, n:] = -1
    row[1, m:] = -2
    scratch.write(slab, row)


def _load(scratch: Rows, slab: int) -> tuple[Integers, Integers, Integers]:
    row = scratch.read(slab)
    is_component = row[1] > -2
    return row[0, row[0] >= 0], row[2:, is_component], row[1, is_component]
