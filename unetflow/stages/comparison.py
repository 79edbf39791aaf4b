"""The compare pass: count pairs of labels per block; the driver adds and scores.

Counts of classes, few as they are, come with the report of a block and are added in memory. Pairs of objects are
stored, a row a block, and merged in order from there (`unetflow.stages.pair_scores`): no process holds as many
as a volume has objects.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import Block, BlockGrid, Box
from unetflow.stages.pair_scores import score_pairs
from unetflow.stages.pieces import Pieces
from unetflow.stages.sorted_runs import MOST_RECORDS
from unetflow.stages.tables import Rows
from unetflow.stages.truth_map import TruthMap
from unetflow.stages.work import Report

if TYPE_CHECKING:
    from unetflow.stages.masks import Mask
    from unetflow.storage.volume import Volume


@dataclass(frozen=True)
class Pair:
    """One segmented image and its truth, aligned by translation.

    Parameters
    ----------
    classes : tuple of Volume
        Class maps of the segmentation: one, or a mask a class for multilabel; a plain
        array of objects counts as class 1 where above 0.
    objects : Volume or None
        Objects of the segmentation.
    truth_objects : Volume or None
        Objects of the truth, where they are not the truth's own values.
    offset : tuple of int
        First voxel of the segmentation, in voxels of the truth.
    domain : Box
        What both cover, in voxels of the segmentation.
    mask : Mask or None
        Over the truth; outside nothing counts.
    """

    name: str
    classes: tuple[Volume, ...]
    objects: Volume | None
    truth: Volume
    truth_objects: Volume | None
    meaning: TruthMap
    offset: tuple[int, ...]
    domain: Box
    is_plain: bool
    mask: Mask | None = None

    @classmethod
    def make(cls, name: str, arrays: dict[str, Volume], truth: Volume, meaning: TruthMap) -> Pair:
        """Choose what is compared, and align it."""
        plain = arrays.get("plain")
        masks = [arrays[key] for key in sorted(arrays) if key.startswith("class-")]
        classes = [plain] if plain is not None else masks or [arrays["classes"]]
        objects = plain if plain is not None else arrays.get("instances")
        first = classes[0]
        for volume in (first, truth):
            if np.dtype(volume.dtype).kind not in "iub":
                raise InputError(f"scores need integer labels, got {volume.dtype} in {volume.path}; name the labels")
        if first.grid_axes != truth.grid_axes:
            raise InputError(
                f"segmentation and truth must have the same axes, got {first.grid_axes} and {truth.grid_axes}"
            )
        if meaning.is_multilabel and len(classes) != truth.n_channels:
            raise InputError(f"truth must have a mask for each of {len(classes)} classes, got {truth.n_channels}")
        offset = _offset(first, truth)
        domain = first.box.shift(offset).intersect(truth.box).shift(tuple(-o for o in offset))
        if domain.size == 0 or (not any(offset) and first.shape != truth.shape):
            raise InputError(
                f"segmentation and truth must cover the same place, got {first.shape} at {first.translation} and "
                f"{truth.shape} at {truth.translation}; give the truth of this region"
            )
        return cls(name, tuple(classes), objects, truth, None, meaning, offset, domain, plain is not None)

    @property
    def has_objects(self) -> bool:
        """Whether both sides have objects."""
        is_told = self.truth_objects is not None or self.meaning.kind == "instances"
        return self.objects is not None and is_told

    @property
    def class_array(self) -> Volume:
        """The class map that components are taken from."""
        return self.classes[0]

    def with_objects(self, segmented: Volume | None, truth: Volume | None) -> Pair:
        """Return the pair with other objects."""
        return replace(self, objects=segmented, truth_objects=truth)


def _offset(segmentation: Volume, truth: Volume) -> tuple[int, ...]:
    lead = (0,) * (segmentation.ndim - len(segmentation.spatial_axes))
    # A truth without metadata has unit voxels; the segmentation's place is then told in its own.
    sizes = segmentation.voxel_size
    ends = zip(segmentation.translation, truth.translation, sizes, strict=True)
    return lead + tuple(round((a - b) / s) for a, b, s in ends)


@dataclass(frozen=True)
class ScoreBlock:
    """Count one block: classes, and the warping error of a whole plane, are reported; pairs of objects are stored."""

    pairs: tuple[Pair, ...]
    pieces: Pieces
    foreground: int | None
    rows: Rows

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.contingency import contingency
        from unetflow.numerics.metrics import unmatched_voxels

        index, here = self.pieces.locate(block.number)
        pair = self.pairs[index]
        box = here.inner
        truth_box = box.shift(pair.offset)
        labels = pair.truth.read(truth_box)
        report: Report = {"image": index, "section": list(box.start[:-2])}
        is_inside = None if pair.mask is None else pair.mask.read(truth_box)
        if pair.meaning.is_multilabel:
            tables = [
                contingency(volume.read(box)[0], (mask > 0).astype(np.uint8), is_inside)
                for volume, mask in zip(pair.classes, labels, strict=True)
            ]
            return {**report, "classes": [t.to_json() for t in tables]}
        is_valid = pair.meaning.counts(labels[0])
        if is_inside is not None:
            is_valid &= is_inside
        truth_classes = pair.meaning.classes(labels[0])
        classes = pair.class_array.read(box)[0]
        if pair.is_plain and self.foreground is None:
            classes = (classes > 0).astype(np.uint8)
        report["classes"] = [contingency(classes, truth_classes, is_valid).to_json()]
        objects = self._truth_objects(pair, truth_box, labels[0], truth_classes)
        if pair.objects is not None and objects is not None:
            table = contingency(pair.objects.read(box)[0], objects, is_valid)
            if len(table.counts):
                self.rows.write(block.number, np.stack([*table.pairs.T, table.counts]))
            report["unmatched"] = unmatched_voxels(table)
        if math.prod(box.shape[:-2]) == 1 and box.shape[-2:] == pair.domain.shape[-2:]:
            report["warping"] = self._warping(classes, truth_classes, is_valid, box)
        return report

    def _truth_objects(
        self, pair: Pair, box: Box, labels: npt.NDArray[Any], classes: npt.NDArray[Any]
    ) -> npt.NDArray[Any] | None:
        if pair.truth_objects is not None:
            return np.asarray(pair.truth_objects.read(box)[0])
        if pair.meaning.kind == "classes":
            return None
        return np.where(classes > 0, labels, 0)

    def _warping(
        self, classes: npt.NDArray[Any], truth: npt.NDArray[Any], is_valid: npt.NDArray[np.bool_], box: Box
    ) -> float | None:
        from unetflow.numerics.warping import warping_error

        plane = box.shape[-2:]
        if math.prod(plane) > 8192**2:
            return None
        wanted = [a == self.foreground if self.foreground is not None else a > 0 for a in (classes, truth)]
        return warping_error(wanted[0].reshape(plane), wanted[1].reshape(plane), is_valid.reshape(plane))


# Blocks or sections that are shown.
_N_WORST = 6


@dataclass
class Tally:
    """What the driver adds up, per section where sections are scored."""

    n_images: int
    sections: bool
    is_multilabel: bool
    classes: dict[Any, list[Any]] = field(default_factory=dict)
    warping: dict[Any, list[float | None]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[tuple[float, int]] = field(default_factory=list)
    right: list[tuple[float, int]] = field(default_factory=list)

    def add(self, number: int, report: Report) -> None:
        """Take the counts of one block."""
        from unetflow.numerics.contingency import Contingency, add

        place = (report["image"], *(report["section"] if self.sections else ()))
        tables = [Contingency.from_json(record) for record in report["classes"]]
        self._rank(number, tables, report.get("unmatched"))
        old = self.classes.get(place)
        self.classes[place] = tables if old is None else [add(a, b) for a, b in zip(old, tables, strict=True)]
        if "warping" in report:
            self.warping[place].append(report["warping"])

    def _rank(self, number: int, tables: list[Any], unmatched: int | None) -> None:
        """Keep the blocks with the most voxels that are wrong: in objects, where there are any."""
        wrong = sum(int(t.counts[t.pairs[:, 0] != t.pairs[:, 1]].sum()) for t in tables)
        if unmatched is not None:
            wrong = unmatched
        self.wrong = sorted([*self.wrong, (-wrong, number)])[:_N_WORST]
        n_true = sum(int(t.counts[t.pairs[:, 1] > 0].sum()) for t in tables)
        if n_true:
            self.right = sorted([*self.right, (wrong / n_true, number)])[:_N_WORST]

    def worst(self) -> list[int]:
        """Return the blocks with the most wrong voxels, the worst first."""
        return [number for wrong, number in self.wrong if wrong < 0]

    def best(self) -> list[int]:
        """Return the blocks with the fewest wrong voxels for each true one, the best first."""
        return [number for _, number in self.right]

    def scores(self, objects: dict[str, float]) -> dict[str, Any]:
        """Return every score, those of objects (see `score_objects`) among them; None where it is not defined."""
        from unetflow.numerics.metrics import class_scores

        places = sorted(self.classes)
        if not self.sections:
            merged = self._merge(self.classes)
            found = self._join_classes([class_scores(t) for t in merged])
        else:
            found = _average([self._join_classes([class_scores(t) for t in self.classes[p]]) for p in places])
        found |= objects
        warped = [w for p in places for w in self.warping[p]]
        found["warping_error"] = sum(warped) / len(warped) if warped and None not in warped else None  # type: ignore[arg-type]
        return {"sections": len(places) if self.sections else None, "images": self.n_images, **_without_nan(found)}

    def _merge(self, tables: dict[Any, list[Any]]) -> list[Any]:
        from unetflow.numerics.contingency import add

        groups = [tables[place] for place in sorted(tables)]
        merged = groups[0]
        for other in groups[1:]:
            merged = [add(a, b) for a, b in zip(merged, other, strict=True)]
        return merged

    def _join_classes(self, scores: list[dict[str, Any]]) -> dict[str, Any]:
        """Keep a class map's scores; of multilabel masks, take what each says of its own class."""
        if not self.is_multilabel:
            return scores[0]
        return {
            "pixel_error": sum(s["pixel_error"] for s in scores) / len(scores),
            "iou": {str(k): s["iou"].get("1", math.nan) for k, s in enumerate(scores)},
            "dice": {str(k): s["dice"].get("1", math.nan) for k, s in enumerate(scores)},
        }


def score_objects(
    pairs: tuple[Pair, ...], pieces: Pieces, rows: Rows, folder: Path, *, sections: bool
) -> dict[str, float]:
    """Score the objects of all images, or of all sections, from the pairs that blocks stored.

    Parameters
    ----------
    folder : Path
        Where pairs go that are more than `MOST_RECORDS`.
    """
    from unetflow.numerics.metrics import pooled_scores

    places = [
        blocks
        for index, pair in enumerate(pairs)
        if pair.has_objects
        for blocks in _sections(pieces, index, sections=sections)
    ]
    found = (score_pairs((rows.read(number) for number in blocks), folder, MOST_RECORDS) for blocks in places)
    if len(places) == 1:
        information, matches = next(found)
        return {**information, **matches.scores()}
    return pooled_scores(found) if places else {}


def _sections(pieces: Pieces, index: int, *, sections: bool) -> list[range]:
    """Return the numbers of the blocks of each section of an image, or of all of it."""
    grid, start, stop = pieces.grids[index], pieces.first[index], pieces.first[index + 1]
    assert isinstance(grid, BlockGrid)
    width = math.prod(grid.counts[-2:]) if sections else stop - start
    return [range(number, number + width) for number in range(start, stop, width)]


def _average(sections: list[dict[str, Any]]) -> dict[str, Any]:
    """Average class scores over sections, each class over those that show it."""
    result: dict[str, Any] = {"pixel_error": _mean([s["pixel_error"] for s in sections])}
    for key in ("iou", "dice"):
        names = sorted({name for s in sections for name in s[key]}, key=int)
        result[key] = {name: _mean([s[key][name] for s in sections if name in s[key]]) for name in names}
    return result


def _mean(values: list[float]) -> float:
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
