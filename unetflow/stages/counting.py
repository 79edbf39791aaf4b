"""Pass 1 over labels: class counts, and where patches may be centred.

Centres are drawn without a list of all voxels: each voxel has a random number that depends
on the seed and its place alone, and the voxels with the smallest numbers of each class are
kept. The smallest of the smallest are the same for any cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import Block, Box
from unetflow.stages.components import pack, unpack
from unetflow.stages.pieces import Pieces
from unetflow.stages.split import Split
from unetflow.stages.truth import MOST_CLASSES, Truth
from unetflow.stages.work import Report


@dataclass(frozen=True)
class CountBlock:
    """Count the classes of one block and draw candidate centres of training patches."""

    truths: tuple[Truth, ...]
    splits: tuple[Split, ...]
    pieces: Pieces
    seed: int
    n_wanted: int

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        index, here = self.pieces.locate(block.number)
        truth = self.truths[index]
        target, is_valid = truth.read(here.inner)
        report: Report = {"volume": index, "valid": int(is_valid.sum()), "counts": {}, "centres": {}}
        if truth.item.data.role == "train":
            report["counts"] = _counts(target, is_valid, truth.is_multilabel)
        may_train = is_valid & _mask_of(self.splits[index].train, here.inner)
        if may_train.any():
            rank = _random_rank(here.inner, truth.item.labels.shape, self.seed, index)
            for value, chosen in _classes_of(target, may_train, truth.is_multilabel):
                report["centres"][str(value)] = _smallest(rank, chosen, here.inner, truth, self.n_wanted)
        return report


def _counts(target: Any, is_valid: Any, is_multilabel: bool) -> dict[str, int]:
    if is_multilabel:
        return {str(k): int((mask.astype(bool) & is_valid).sum()) for k, mask in enumerate(target)}
    values, counts = np.unique(target[is_valid], return_counts=True)
    return {str(int(v)): int(n) for v, n in zip(values, counts, strict=True)}


def _classes_of(target: Any, allowed: Any, is_multilabel: bool) -> Iterator[tuple[int, Any]]:
    """Yield each class and where it may be a centre; -1 stands for anywhere where classes overlap."""
    if is_multilabel:
        yield -1, allowed
        for value, mask in enumerate(target):
            yield value, allowed & (mask > 0)
    else:
        for value in np.unique(target[allowed]):
            yield int(value), allowed & (target == value)


def _mask_of(allowed: Box | None, box: Box) -> npt.NDArray[np.bool_]:
    mask = np.zeros(box.shape, bool)
    if allowed is not None:
        mask[allowed.intersect(box).relative_to(box).slices] = True
    return mask


def _linear_index(box: Box, shape: Sequence[int]) -> npt.NDArray[np.uint64]:
    index = np.zeros((1,) * box.ndim, np.uint64)
    for axis, length in enumerate(shape):
        along = np.arange(box.start[axis], box.stop[axis], dtype=np.uint64)
        index = index * np.uint64(length) + along.reshape([-1 if a == axis else 1 for a in range(box.ndim)])
    return np.broadcast_to(index, box.shape)


def _random_rank(box: Box, shape: Sequence[int], seed: int, volume: int) -> npt.NDArray[np.uint64]:
    """Give each voxel a random number of its own (the finaliser of splitmix64)."""
    key = np.random.SeedSequence([seed, 3, volume]).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):
        z = _linear_index(box, shape) * np.uint64(0x9E3779B97F4A7C15) + key
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def _smallest(rank: Any, chosen: Any, box: Box, truth: Truth, n_wanted: int) -> list[str]:
    ranks = rank[chosen]
    places = _linear_index(box, truth.item.labels.shape)[chosen]
    if len(ranks) > n_wanted:
        keep = np.argpartition(ranks, n_wanted)[:n_wanted]
        ranks, places = ranks[keep], places[keep]
    return [pack(ranks), pack(places)]


@dataclass
class Census:
    """What the driver keeps of the counts: sums, and the best centres of each class."""

    n_wanted: int
    counts: dict[int, int] = field(default_factory=dict)
    n_valid: dict[int, int] = field(default_factory=dict)
    centres: dict[int, npt.NDArray[np.uint64]] = field(default_factory=dict)

    def add(self, number: int, report: Report) -> None:
        """Take the report of one block; the order of blocks does not matter."""
        volume = report["volume"]
        if report["counts"]:
            self.n_valid[volume] = self.n_valid.get(volume, 0) + report["valid"]
        for value, count in report["counts"].items():
            self.counts[int(value)] = self.counts.get(int(value), 0) + count
        for value, (ranks, places) in report["centres"].items():
            rows = np.stack([unpack(ranks, np.uint64), unpack(places, np.uint64)], 1)
            rows = np.insert(rows, 1, volume, axis=1)
            self.centres[int(value)] = self._best([self.centres.get(int(value)), rows])

    def _best(self, tables: Sequence[npt.NDArray[np.uint64] | None]) -> npt.NDArray[np.uint64]:
        rows = np.concatenate([t for t in tables if t is not None])
        order = np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))
        return rows[order[: self.n_wanted]]

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

    def draw(self, count: int, foreground_fraction: float | None, is_multilabel: bool) -> npt.NDArray[np.int64]:
        """Return volume and place of each patch's centre, by quota.

        Returns
        -------
        ndarray of int64, shape (count, 2)
        """
        anywhere = self.centres.get(-1) if is_multilabel else self._best(list(self.centres.values()))
        if anywhere is None or not len(anywhere):
            raise InputError("training needs a voxel that is not ignored, got none; look at roi, mask and ignore")
        lowest = 0 if is_multilabel else 1
        foreground = [rows for value, rows in sorted(self.centres.items()) if value >= lowest]
        foreground = [rows for rows in foreground if len(rows)]
        share = foreground_fraction if foreground_fraction is not None and foreground else 0.0
        others = self.centres.get(0, anywhere) if share and not is_multilabel else anywhere
        rows, n_front, n_back = [], 0, 0
        for i in range(count):
            if int((i + 1) * share + 1e-9) > int(i * share + 1e-9):
                table, turn = foreground[n_front % len(foreground)], n_front // len(foreground)
                n_front += 1
            else:
                table, turn = (others if len(others) else anywhere), n_back
                n_back += 1
            rows.append(table[turn % len(table), 1:])
        return np.asarray(rows, np.int64).reshape(count, 2)
