"""Scores of a segmentation, made from counts that add over blocks.

A score that is not defined (no object in the truth, no valid voxel) is NaN. Labels above 0 are
objects; the truth's background is ignored where the definition says so.

References
----------
.. [1] Arganda-Carreras et al.: Crowdsourcing the creation of image segmentation algorithms for
   connectomics. Front. Neuroanat. 2015 (adapted Rand error).
.. [2] Meila: Comparing clusterings. J. Multivariate Anal. 2007 (variation of information).
.. [3] Ulman et al.: An objective comparison of cell-tracking algorithms. Nat. Methods 2017 (SEG).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from operator import mul
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from unetflow.numerics.contingency import Contingency, add, contingency

__all__ = [
    "THRESHOLDS",
    "Contingency",
    "Matches",
    "add",
    "class_scores",
    "contingency",
    "information",
    "information_scores",
    "object_matches",
    "object_scores",
    "pooled_scores",
    "section_scores",
    "unmatched_voxels",
]

# In percent, for 0.05 added up does not meet 0.55 exactly.
THRESHOLDS = tuple(range(50, 95, 5))


@dataclass(frozen=True)
class Matches:
    """Counts of matched objects, which pool over sections and images by adding.

    Parameters
    ----------
    seg_sum : float
        Sum over truth objects of the IoU with the object that covers more than half of each.
    n_truth, n_segmented : int
        Objects in the truth and in the segmentation.
    n_matched : tuple of int
        Objects matched at each of `THRESHOLDS`.
    """

    seg_sum: float = 0.0
    n_truth: int = 0
    n_segmented: int = 0
    n_matched: tuple[int, ...] = (0,) * len(THRESHOLDS)

    def __add__(self, other: Matches) -> Matches:
        return Matches(
            self.seg_sum + other.seg_sum,
            self.n_truth + other.n_truth,
            self.n_segmented + other.n_segmented,
            tuple(a + b for a, b in zip(self.n_matched, other.n_matched, strict=True)),
        )

    def scores(self) -> dict[str, float]:
        """Return ``seg``, ``ap50`` ... ``ap90`` and ``map``."""
        precision = {
            f"ap{percent}": _ratio(n, self.n_truth + self.n_segmented - n)
            for percent, n in zip(THRESHOLDS, self.n_matched, strict=True)
        }
        mean = sum(precision.values()) / len(precision)
        return {"seg": _ratio(self.seg_sum, self.n_truth), **precision, "map": mean}


def class_scores(table: Contingency) -> dict[str, Any]:
    """Score a class map: ``pixel_error``, and ``iou`` and ``dice`` of each class that occurs.

    Examples
    --------
    >>> scores = class_scores(contingency(np.array([0, 1, 1, 1]), np.array([0, 0, 1, 1])))
    >>> scores["pixel_error"], scores["iou"]
    (0.25, {'0': 0.5, '1': 0.6666666666666666})
    """
    seg, truth = table.pairs.T
    wrong = int(table.counts[seg != truth].sum())
    iou, dice = {}, {}
    for label in np.unique(table.pairs):
        in_both = int(table.counts[(seg == label) & (truth == label)].sum())
        total = int(table.counts[seg == label].sum() + table.counts[truth == label].sum())
        iou[str(label)] = in_both / (total - in_both)
        dice[str(label)] = 2 * in_both / total
    return {"pixel_error": _ratio(wrong, table.n), "iou": iou, "dice": dice}


def object_scores(table: Contingency) -> dict[str, float]:
    """Score objects: the keys of `information_scores` and of `Matches.scores`."""
    return {**information_scores(table), **object_matches(table).scores()}


def information_scores(table: Contingency) -> dict[str, float]:
    """Return the adapted Rand error [1]_ and the variation of information [2]_ in bits.

    Where the truth is background nothing counts; the segmentation's background is a segment
    like any other. The names are scikit-image's: ``rand_precision`` is the share of the
    truth's pairs of voxels that the segmentation keeps together.
    """
    is_object = table.pairs[:, 1] > 0
    counts = table.counts[is_object]
    in_seg, in_truth = _margins(table.pairs[is_object], counts)
    return information(_Counts(counts), _Counts(in_seg), _Counts(in_truth))


class Counts(Protocol):
    """Voxels of some labels, or of pairs of labels."""

    @property
    def total(self) -> int:
        """Their sum."""

    def squares(self) -> int:
        """Return the sum of their squares."""

    def entropy(self) -> float:
        """Return the entropy of their shares, in bits."""


def information(joint: Counts, in_seg: Counts, in_truth: Counts) -> dict[str, float]:
    """Make the scores of `information_scores` from the counts of pairs, of segments and of truth objects."""
    n = joint.total
    pairs, seg_pairs, truth_pairs = (float(counts.squares() - n) for counts in (joint, in_seg, in_truth))
    both = joint.entropy()
    return {
        "adapted_rand_error": 1 - _ratio(2 * pairs, seg_pairs + truth_pairs),
        "rand_precision": _ratio(pairs, truth_pairs),
        "rand_recall": _ratio(pairs, seg_pairs),
        "voi_split": max(0.0, both - in_truth.entropy()) if n else float("nan"),
        "voi_merge": max(0.0, both - in_seg.entropy()) if n else float("nan"),
    }


@dataclass(frozen=True, eq=False)
class _Counts:
    """Counts in memory."""

    values: npt.NDArray[np.int64]

    @property
    def total(self) -> int:
        return int(self.values.sum())

    def squares(self) -> int:
        # Exact: the squares of large objects are more than 64 bits hold.
        values = self.values.tolist()
        return sum(map(mul, values, values))

    def entropy(self) -> float:
        share = self.values / self.values.sum() if len(self.values) else self.values.astype(np.float64)
        return float(-(share * np.log2(share)).sum())


def object_matches(table: Contingency) -> Matches:
    """Match the objects of segmentation and truth by their IoU [3]_.

    Voxels of an object that lie on the other side's background count in its size.
    """
    in_seg, in_truth = _margins(table.pairs, table.counts)
    is_both = (table.pairs > 0).all(axis=1)
    pairs, shared = table.pairs[is_both], table.counts[is_both]
    labels_seg, labels_truth = (np.unique(column) for column in table.pairs.T)
    size_seg = in_seg[np.searchsorted(labels_seg, pairs[:, 0])]
    size_truth = in_truth[np.searchsorted(labels_truth, pairs[:, 1])]
    iou = shared / (size_seg + size_truth - shared)
    return Matches(
        seg_sum=float(iou[2 * shared > size_truth].sum()),
        n_truth=int((labels_truth > 0).sum()),
        n_segmented=int((labels_seg > 0).sum()),
        n_matched=tuple(_n_matched(pairs[iou >= percent / 100]) for percent in THRESHOLDS),
    )


def unmatched_voxels(table: Contingency) -> int:
    """Count the voxels of objects that lie outside the best partner of their object, on either side.

    Examples
    --------
    >>> unmatched_voxels(contingency(np.array([1, 1, 2, 0]), np.array([1, 1, 1, 3])))
    2
    """
    is_any = (table.pairs > 0).any(axis=1)
    pairs, counts = table.pairs[is_any], table.counts[is_any]
    shared = np.where((pairs > 0).all(axis=1), counts, 0)
    is_best = np.ones(len(pairs), np.bool_)
    for column in pairs.T:
        labels, inverse = np.unique(column, return_inverse=True)
        most = np.zeros(len(labels), np.int64)
        np.maximum.at(most, inverse, shared)
        is_best &= shared == most[inverse]
    return int(counts[~(is_best & (shared > 0))].sum())


def section_scores(tables: Iterable[Contingency]) -> dict[str, float]:
    """Score each section (or image) on its own: ``seg`` and ``ap*`` pool, the others average.

    A section in which a score is not defined does not count in its average.
    """
    return pooled_scores((information_scores(table), object_matches(table)) for table in tables)


def pooled_scores(sections: Iterable[tuple[dict[str, float], Matches]]) -> dict[str, float]:
    """Make the scores of `section_scores` from what `information_scores` and `object_matches` say of each section."""
    matches, found = Matches(), []
    for information_of, matched in sections:
        matches += matched
        found.append(information_of)
    averages = {}
    for key in found[0] if found else information_scores(Contingency.empty()):
        defined = [scores[key] for scores in found if not np.isnan(scores[key])]
        averages[key] = _ratio(sum(defined), len(defined))
    return {**averages, **matches.scores()}


def _margins(pairs: npt.NDArray[np.int64], counts: npt.NDArray[Any]) -> list[npt.NDArray[Any]]:
    """Sum the counts of each label of the segmentation, and of each label of the truth."""
    sums = []
    for column in pairs.T:
        labels, inverse = np.unique(column, return_inverse=True)
        total = np.zeros(len(labels), counts.dtype)
        np.add.at(total, inverse, counts)
        sums.append(total)
    return sums


def _n_matched(pairs: npt.NDArray[np.int64]) -> int:
    # Above one half an object has one partner. At exactly one half it may have two, which have
    # no other partner; so each match is a star, and has one end that is listed once.
    return sum(len(np.unique(column)) for column in pairs.T) - len(pairs)


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
