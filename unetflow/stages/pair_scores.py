"""Scores of objects from counts of pairs of labels that are more than memory holds.

::

    rows of blocks   -> sorted by truth:         size of each truth object; which pairs hold most of one
                     -> sorted by segmentation:  size of each segmented object; IoU of each pair

The definitions are those of `unetflow.numerics.metrics`, which has them for a table in memory; sums of
fractions are made in the same order (`unetflow.numerics.summation`), so both agree to the last digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import mul
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.stages.sorted_runs import MOST_RECORDS, Records, Sorter

if TYPE_CHECKING:
    from unetflow.numerics.metrics import Matches

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def score_pairs(
    rows: Iterable[Integers], folder: Path, most: int = MOST_RECORDS
) -> tuple[dict[str, float], Matches]:
    """Return the information scores and the matches of pairs of labels.

    Parameters
    ----------
    rows : iterable of ndarray of int64, shape (3, m)
        Label in the segmentation, label in the truth, voxels that have both; a pair any number of times.
    folder : Path
        Where runs go that are more than ``most`` records.
    """
    from unetflow.numerics.metrics import information

    pairs = Sorter(folder, "by-truth", 2, 3, most)
    for seg, truth, counts in rows:
        pairs.add(np.stack([truth, seg, counts], axis=1))
    by_truth = pairs.finish()
    truths = _sizes(by_truth, folder / "truths", most)
    turned, n_joint, n_covered = Sorter(folder, "by-segmentation", 2, 4, most), 0, 0
    for piece, sizes in _with_sizes(by_truth, truths):
        truth, seg, counts = piece.T
        turned.add(np.stack([seg, truth, sizes, counts], axis=1))
        n_joint += int((truth > 0).sum())
        n_covered += int(((truth > 0) & (seg > 0) & (2 * counts > sizes)).sum())
    by_truth.remove()
    by_seg = turned.finish()
    segments = _sizes(by_seg, folder / "segments", most)
    counted = _sizes(by_seg, folder / "counted", most, lambda piece: piece[piece[:, 1] > 0])
    joint = _Counts(lambda: (piece[piece[:, 1] > 0, -1] for piece in by_seg.pieces()), n_joint)
    in_truth = _Counts(lambda: (piece[piece[:, 0] > 0, -1] for piece in truths.pieces()), _n_objects(truths))
    in_seg = _Counts(lambda: (piece[:, -1] for piece in counted.pieces()), counted.n)
    scores = information(joint, in_seg, in_truth)
    matches = _matches(by_seg, segments, truths, n_covered, Sorter(folder, "halves", 1, 2, most))
    for records in (by_seg, segments, counted, truths):
        records.remove()
    return scores, matches


class _Counts:
    """Counts that come in pieces, any number of times."""

    def __init__(self, pieces: Callable[[], Iterator[Integers]], n: int) -> None:
        self._pieces, self._n = pieces, n
        self.total = sum(int(piece.sum()) for piece in pieces())

    def squares(self) -> int:
        """Return the sum of their squares, exactly."""
        return sum(sum(map(mul, piece.tolist(), piece.tolist())) for piece in self._pieces())

    def entropy(self) -> float:
        """Return the entropy of their shares, in bits."""
        from unetflow.numerics.summation import pairwise_sum

        def terms() -> Iterator[Floats]:
            for piece in self._pieces():
                share = piece.astype(np.float64) / np.float64(self.total)
                yield share * np.log2(share)

        return -pairwise_sum(terms(), self._n)


def _matches(by_seg: Records, segments: Records, truths: Records, n_covered: int, halves: Sorter) -> Matches:
    """Match objects by the IoU of their pairs."""
    from unetflow.numerics.metrics import THRESHOLDS, Matches
    from unetflow.numerics.summation import pairwise_sum

    limits = np.array(THRESHOLDS) / 100
    n_near, last, n_stars = np.zeros(len(limits), np.int64), 0, 0

    def covering() -> Iterator[Floats]:
        """Yield the IoU of the pairs that hold most of a truth object; count matches on the way."""
        nonlocal last, n_stars
        for piece, size_seg in _with_sizes(by_seg, segments):
            is_both = (piece[:, :2] > 0).all(axis=1)
            seg, truth, size_truth, shared = piece[is_both].T
            iou = shared / (size_seg[is_both] + size_truth - shared)
            n_near[:] += (iou[:, None] >= limits).sum(axis=0)
            half = iou == limits[0]
            if half.any():
                # At exactly one half an object may have two partners: counted are the stars that they form.
                own = np.concatenate([[last], seg[half]])
                n_stars += int((own[1:] != own[:-1]).sum()) - 2 * int(half.sum())
                last = int(own[-1])
                halves.add(np.stack([truth[half], np.ones(half.sum(), np.int64)], axis=1))
            yield iou[2 * shared > size_truth]

    pieces = covering()
    seg_sum = pairwise_sum(pieces, n_covered)
    for _ in pieces:  # what holds most of no truth object any more
        pass
    in_halves = halves.finish()
    n_near[0] += n_stars + in_halves.n
    in_halves.remove()
    return Matches(seg_sum, _n_objects(truths), _n_objects(segments), tuple(n_near.tolist()))


def _sizes(
    records: Records, path: Path, most: int, chosen: Callable[[Integers], Integers] = lambda piece: piece
) -> Records:
    """Add up the counts of each label in the first column, which is sorted: records of (label, voxels)."""
    found, open_ = Records(path, 2, most), np.zeros((0, 2), np.int64)
    for piece in records.pieces():
        part = np.concatenate([open_, chosen(piece)[:, [0, -1]]])
        if len(part):
            starts = np.flatnonzero(np.concatenate([[True], part[1:, 0] != part[:-1, 0]]))
            sums = np.stack([part[starts, 0], np.add.reduceat(part[:, 1], starts)], axis=1)
            found.append(sums[:-1])
            open_ = sums[-1:]
    found.append(open_)
    return found


def _with_sizes(records: Records, sizes: Records) -> Iterator[tuple[Integers, Integers]]:
    """Yield records, and of each the size of the label in its first column."""
    n_before, last = 0, None
    for piece in records.pieces():
        labels = piece[:, 0]
        is_new = np.concatenate([[last is None or labels[0] != last], labels[1:] != labels[:-1]])
        places = n_before - 1 + np.cumsum(is_new)
        yield piece, sizes.read(int(places[0]), int(places[-1]) + 1)[places - places[0], 1]
        n_before, last = int(places[-1]) + 1, labels[-1]


def _n_objects(sizes: Records) -> int:
    return sum(int((piece[:, 0] > 0).sum()) for piece in sizes.pieces())
