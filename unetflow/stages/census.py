"""What the driver keeps of the counts, and the choice of patches made from it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.stages.counting import MOST_TILES
from unetflow.stages.packing import unpack
from unetflow.stages.truth import MOST_CLASSES
from unetflow.stages.work import Report

Integers = npt.NDArray[np.int64]
# Columns: rank, volume, place.
Rows = npt.NDArray[np.uint64]


@dataclass
class Census:
    """Sums over the blocks, and the best centres and tiles; bounded, however many blocks there are.

    Parameters
    ----------
    n_wanted : int
        Centres of each class that are kept.
    """

    n_wanted: int
    counts: dict[int, int] = field(default_factory=dict)
    n_valid: dict[int, int] = field(default_factory=dict)
    centres: dict[int, Rows] = field(default_factory=dict)
    # The best centre of each class in each volume, so that no volume is left out.
    firsts: dict[tuple[int, int], Rows] = field(default_factory=dict)
    tiles: dict[str, Rows] = field(default_factory=dict)

    def add(self, number: int, report: Report) -> None:
        """Take the report of one block; the order of blocks does not matter."""
        volume = report["volume"]
        if report["counts"]:
            self.add_counts(volume, report["valid"], {int(k): n for k, n in report["counts"].items()})
        for value, packed in report["centres"].items():
            self.add_centres(int(value), volume, *(unpack(text, np.uint64) for text in packed))
        for name, packed in report["tiles"].items():
            rows = _rows(volume, *(unpack(text, np.uint64) for text in packed))
            self.tiles[name] = _lowest([self.tiles.get(name), rows], MOST_TILES)

    def add_counts(self, volume: int, n_valid: int, counts: dict[int, int]) -> None:
        """Add voxels of each class."""
        self.n_valid[volume] = self.n_valid.get(volume, 0) + n_valid
        for value, count in counts.items():
            self.counts[value] = self.counts.get(value, 0) + count

    def add_centres(self, value: int, volume: int, ranks: Rows, places: Rows) -> None:
        """Add voxels of one class in one volume that a patch may be centred on."""
        rows = _rows(volume, ranks, places)
        if len(rows):
            self.centres[value] = _lowest([self.centres.get(value), rows], self.n_wanted)
            self.firsts[value, volume] = _lowest([self.firsts.get((value, volume)), rows], 1)

    def n_classes(self, kind: str) -> int:
        """Return the number of classes that the labels show (multilabel: of masks).

        Raises
        ------
        InputError
            If there are more classes than a class map can hold.
        """
        highest = max(self.counts, default=0)
        if highest >= MOST_CLASSES:
            raise InputError(
                f'kind = "{kind}" needs class indices below {MOST_CLASSES}, got {highest}; '
                'are these object ids (kind = "instances"), or is a class_map missing?'
            )
        return highest + 1 if kind == "multilabel" else max(2, highest + 1)

    def draw(self, count: int, foreground_fraction: float | None, is_multilabel: bool) -> Integers:
        """Return volume and place of each patch's centre, by quota.

        Of ``count`` patches, the fraction is centred on foreground, the classes by turns, and
        the rest on background; without a fraction, centres are uniform. Every volume and every
        class gets a patch, as far as there are patches enough.

        Returns
        -------
        ndarray of int64, shape (count, 2)
        """
        if not self.centres:
            raise InputError("training needs a voxel that is not ignored, got none; look at roi, mask and ignore")
        lowest = 0 if is_multilabel else 1
        front = {value: rows for value, rows in sorted(self.centres.items()) if value >= lowest}
        everywhere = {-1: self.centres[-1]} if is_multilabel else self.centres
        back = everywhere if foreground_fraction is None or is_multilabel else {0: self.centres.get(0, _none())}
        if not len(_joined(back.values())):
            back = everywhere
        share = foreground_fraction if foreground_fraction is not None and front else 0.0
        n_front = round(count * share)
        chosen_front = self._cover(_by_turns(list(front.values()), n_front), front)
        chosen_back = self._cover(_by_turns([_joined(back.values())], count - n_front), back)
        return _interleave(chosen_front, chosen_back)[:, 1:].astype(np.int64)

    def draw_tiles(self) -> Integers:
        """Return volume and number of the validation tiles, at most 200, half of them with foreground."""
        rows = self.tiles.get("any", _none())
        front = self.tiles.get("front", _none())
        if len(rows) >= MOST_TILES:
            half = front[: MOST_TILES // 2]
            is_taken = (rows[:, None, 1:] == half[None, :, 1:]).all(axis=2).any(axis=1)
            rows = np.concatenate([half, rows[~is_taken][: MOST_TILES - len(half)]])
        order = np.lexsort((rows[:, 2], rows[:, 1]))
        return rows[order, 1:].astype(np.int64)

    def _cover(self, chosen: Rows, group: dict[int, Rows]) -> Rows:
        """Swap patches of the commonest volume for ones of volumes and classes that have none."""
        firsts = {key: rows for key, rows in sorted(self.firsts.items()) if key[0] in group}
        is_fixed = np.zeros(len(chosen), bool)
        for volume in sorted({v for _, v in firsts} - set(chosen[:, 1].tolist())):
            chosen = _swap_in(chosen, _joined(rows for (_, v), rows in firsts.items() if v == volume)[0], is_fixed)
        there = {tuple(row) for row in chosen[:, 1:].tolist()}
        for rows in group.values():
            if len(rows) and not any(tuple(row) in there for row in rows[:, 1:].tolist()):
                chosen = _swap_in(chosen, rows[0], is_fixed)
        return chosen


def _none() -> Rows:
    return np.zeros((0, 3), np.uint64)


def _rows(volume: int, ranks: Rows, numbers: Rows) -> Rows:
    return np.stack([ranks, np.full(len(ranks), volume, np.uint64), numbers], 1)


def _lowest(tables: Sequence[Rows | None], count: int) -> Rows:
    """Join tables, drop doubles, and keep the lowest ranks."""
    return _joined(t for t in tables if t is not None)[:count]


def _joined(tables: Iterable[Rows]) -> Rows:
    """Return the rows of several tables, each once, by rank."""
    rows = np.concatenate([_none(), *tables])
    rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
    is_new = np.ones(len(rows), bool)
    is_new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return rows[is_new]


def _by_turns(tables: list[Rows], count: int) -> Rows:
    """Take ``count`` rows, from each table in turn; a table that ends begins again."""
    if count == 0:
        return _none()
    turns = [(tables[i % len(tables)], i // len(tables)) for i in range(count)]
    return np.stack([table[turn % len(table)] for table, turn in turns])


def _swap_in(chosen: Rows, row: Rows, is_fixed: npt.NDArray[np.bool_]) -> Rows:
    """Put a row in the place of the last one of the volume that has most, if that has two."""
    volumes, counts = np.unique(chosen[~is_fixed, 1], return_counts=True)
    if not len(counts) or counts.max() < 2:
        return chosen
    at = np.flatnonzero((chosen[:, 1] == volumes[np.argmax(counts)]) & ~is_fixed)[-1]
    is_fixed[at] = True
    chosen = chosen.copy()
    chosen[at] = row
    return chosen


def _interleave(front: Rows, back: Rows) -> Rows:
    """Spread both evenly, so that any part of the patches keeps the quota."""
    at = np.concatenate([(np.arange(len(t)) + 0.5) / max(1, len(t)) for t in (front, back)])
    return np.concatenate([front, back])[np.argsort(at, kind="stable")]
