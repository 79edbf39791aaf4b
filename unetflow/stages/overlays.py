"""Pictures of where a segmentation is wrong: the plane of a section or block with the most errors.

Grey: both say object. Orange: the segmentation alone. Blue: the truth alone. Outlines: yellow of the
segmentation's objects, white of the truth's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box
from unetflow.stages.panels import is_edge
from unetflow.stages.pieces import Pieces

if TYPE_CHECKING:
    from unetflow.stages.comparison import Pair

Array = npt.NDArray[Any]

# Pixels of a picture's longer side: larger planes are shown in part, where they are worst.
_LARGEST, _WIDE = 1024, 512
_BOTH, _SEGMENTED, _TRUE = (110, 110, 110), (255, 157, 46), (40, 120, 255)
_OUTLINE_SEGMENTED, _OUTLINE_TRUE = (255, 225, 77), (255, 255, 255)


def write_overlays(pairs: tuple[Pair, ...], pieces: Pieces, numbers: Sequence[int], folder: str) -> list[str]:
    """Draw blocks, the worst first, and return the files."""
    from PIL import Image

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    files = []
    for rank, number in enumerate(numbers, 1):
        index, here = pieces.locate(number)
        pair = pairs[index]
        segmented, truth = (_labels(pair, here.inner, is_truth=is_truth) for is_truth in (False, True))
        wrong = (segmented > 0) != (truth > 0)
        planes = wrong.reshape(-1, *wrong.shape[-2:])
        at = int(planes.sum(axis=(1, 2)).argmax())
        window = _window(planes[at])
        pictures = [a.reshape(planes.shape)[at][window.slices] for a in (segmented, truth)]
        place = np.unravel_index(at, wrong.shape[:-2]) if wrong.ndim > 2 else ()
        lead = [int(p) + a for p, a in zip(place, here.inner.start, strict=False)]
        corner = [int(w) + a for w, a in zip(window.start, here.inner.start[-2:], strict=True)]
        where = "-".join(str(v) for v in [*lead, *corner])
        file = target / f"worst-{rank}{'-' + pair.name if pair.name else ''}-at-{where}.png"
        Image.fromarray(_enlarged(draw(*pictures))).save(file)
        files.append(str(file))
    return files


def draw(segmented: Array, truth: Array) -> npt.NDArray[np.uint8]:
    """Draw two label maps over each other, ``(Y, X)`` -> ``(Y, X, 3)``.

    Examples
    --------
    >>> ids = np.zeros((5, 5), int)
    >>> ids[1:4, 1:4] = 1
    >>> draw(ids, ids)[2, 2].tolist(), draw(ids, 0 * ids)[2, 2].tolist()
    ([110, 110, 110], [255, 157, 46])
    """
    picture = np.zeros((*segmented.shape, 3), np.uint8)
    picture[(segmented > 0) & (truth > 0)] = _BOTH
    picture[(segmented > 0) & (truth == 0)] = _SEGMENTED
    picture[(segmented == 0) & (truth > 0)] = _TRUE
    picture[_outline(segmented)] = _OUTLINE_SEGMENTED
    picture[_outline(truth)] = _OUTLINE_TRUE
    return picture


def _labels(pair: Pair, box: Box, *, is_truth: bool) -> Array:
    """Read the objects of one side, or its classes where it has no objects."""
    if is_truth:
        place = box.shift(pair.offset)
        if pair.truth_objects is not None:
            return np.asarray(pair.truth_objects.read(place)[0])
        labels = pair.truth.read(place)
        if pair.meaning.is_multilabel:
            return np.asarray((labels > 0).any(axis=0))
        return np.where(pair.meaning.classes(labels[0]) > 0, labels[0], 0)
    if pair.meaning.is_multilabel:
        return np.asarray(np.any([volume.read(box)[0] > 0 for volume in pair.classes], axis=0))
    return np.asarray((pair.objects or pair.class_array).read(box)[0])


def _outline(labels: Array) -> npt.NDArray[np.bool_]:
    """Return the voxels of objects beside what is another label."""
    return is_edge(labels) & (labels > 0)


def _window(wrong: npt.NDArray[np.bool_]) -> Box:
    """Return the plane, or of a large one the window that is most wrong."""
    shape = tuple(min(n, _LARGEST) for n in wrong.shape)
    start = []
    for axis, (n, length) in enumerate(zip(wrong.shape, shape, strict=True)):
        along = np.concatenate([[0], np.cumsum(wrong.sum(axis=1 - axis))])
        start.append(int((along[length:] - along[: n - length + 1]).argmax()))
    return Box(tuple(start), tuple(a + n for a, n in zip(start, shape, strict=True)))


def _enlarged(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    times = max(1, _WIDE // max(picture.shape[:2]))
    return picture.repeat(times, axis=0).repeat(times, axis=1)
