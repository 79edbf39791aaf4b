"""Pictures of a report: small boxes and coarse levels of raw, probabilities, objects and truth, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import Box, Shape
from unetflow.stages.output_arrays import Levels
from unetflow.stages.previews import where

if TYPE_CHECKING:
    from unetflow.stages.panels import Picture
    from unetflow.storage.volume import Volume

Array = npt.NDArray[Any]
Shown = list[tuple[str, str]]  # title, data URI

DASH = "–"  # between the ends of a range, where people read it
_OVERVIEW, _DETAIL = 640, 256  # pixels of the longer side, at most
_SEARCHED = 2**24  # voxels of a block that is looked through for its worst window
_QUALITY = 84


@dataclass(frozen=True)
class Sight:
    """One image of an output and what it came from.

    Parameters
    ----------
    raw : sequence of Volume
        The levels of the input that could be opened, finest first; none where it is not there.
    start : tuple of int
        First voxel of the output, in voxels of the input.
    arrays : dict of str to levels
        As `output_arrays.levels_of` gives them.
    """

    raw: Sequence[Volume]
    start: Shape
    arrays: dict[str, Levels]

    @property
    def top(self) -> Volume:
        """The finest level of the first array."""
        return next(iter(self.arrays.values()))[0]

    def overview(self) -> tuple[Shown, str]:
        """Show the middle plane of a level that is small enough, and name the place."""
        levels = next(iter(self.arrays.values()))
        level = next((n for n, v in enumerate(levels) if max(v.shape[-2:]) <= _OVERVIEW), len(levels) - 1)
        volume = levels[level]
        box = _middle(volume.shape, _OVERVIEW)
        factor = [round(a / b) for a, b in zip(self.top.shape, volume.shape, strict=True)]
        place = f"the middle plane, {where(volume.grid_axes, box, DASH)}"
        return self._shown(box, level, factor), place + (f" of level {level}" if level else "")

    def detail(self, box: Box, truth: tuple[Volume, Shape, bool] | None = None) -> tuple[Shown, str]:
        """Show a plane ``box`` at full resolution, with the truth if it is given.

        Parameters
        ----------
        truth : (Volume, offset, whether its values are objects), optional
        """
        shown = self._shown(box, 0, [1] * box.ndim)
        if truth is not None:
            labels, offset, is_ids = truth
            layer = _plane(labels.read(box.shift(offset).intersect(labels.box)))
            base = self._grey(box, 0, [1] * box.ndim)
            shown.insert(1, ("truth", encode(_overlaid(base, layer, is_ids=is_ids))))
        return shown, where(self.top.grid_axes, box, DASH)

    def _shown(self, box: Box, level: int, factor: Sequence[int]) -> Shown:
        from unetflow.stages.panels import grey

        base = self._grey(box, level, factor)
        shown: Shown = [] if base is None else [("raw", encode(base))]
        for name, levels in self.arrays.items():
            volume = levels[min(level, len(levels) - 1)]
            voxels = volume.read(box.intersect(volume.box))
            if name == "":
                shown.append(("probability", encode(_chance(voxels))))
            elif name == "labels/instances":
                shown.append(("objects", encode(_overlaid(base, _plane(voxels), is_ids=True))))
            elif "labels/instances" not in self.arrays and len(shown) < 4:
                title = name.removeprefix("labels/")
                shown.append((title, encode(_overlaid(base, _plane(voxels), is_ids=False))))
        return shown or [("raw", encode(grey(np.zeros((1, *box.shape[-2:]), np.uint8))))]

    def _grey(self, box: Box, level: int, factor: Sequence[int]) -> Picture | None:
        """Return the raw plane that an output's box at a level shows; None where none is small enough."""
        from unetflow.stages.panels import grey

        fine = [(a * f + s, b * f + s) for a, b, f, s in zip(box.start, box.stop, factor, self.start, strict=True)]
        for volume in self.raw:
            ratio = [n / m for n, m in zip(volume.shape, self.raw[0].shape, strict=True)]
            start = [min(round(a * r), n - 1) for (a, _), r, n in zip(fine, ratio, volume.shape, strict=True)]
            stop = [
                min(max(a + 1, round(b * r)), n)
                for (_, b), a, r, n in zip(fine, start, ratio, volume.shape, strict=True)
            ]
            stop[:-2] = [a + 1 for a in start[:-2]]
            there = Box(tuple(start), tuple(stop))
            if max(there.shape[-2:]) <= 2 * _OVERVIEW:
                voxels = volume.read(there)
                return grey(_resized(voxels.reshape(len(voxels), *there.shape[-2:]), box.shape[-2:]))
        return None


def worst_window(segmented: Volume, truth: Volume, offset: Shape, box: Box, *, is_best: bool) -> Box:
    """Return the plane and window of a block where most, or least, of the foreground is wrong."""
    from scipy.ndimage import uniform_filter

    if box.size > _SEARCHED:
        box = _middle_of(box)
    found = segmented.read(box).max(axis=0) > 0
    true = truth.read(box.shift(offset)).max(axis=0) > 0
    wrong = (found != true).reshape(-1, *box.shape[-2:])
    counts = wrong.sum(axis=(1, 2))
    if is_best:
        counts = np.where(true.reshape(wrong.shape).any(axis=(1, 2)), -counts, -wrong[0].size - 1)
    at = int(counts.argmax())
    size = tuple(min(_DETAIL, n) for n in box.shape[-2:])
    density = uniform_filter(wrong[at].astype(np.float32), size, mode="constant")
    peak = [n // 2 for n in density.shape] if is_best else np.unravel_index(int(density.argmax()), density.shape)
    centre = [int(c) for c in peak]
    start = [min(max(0, c - s // 2), n - s) for c, s, n in zip(centre, size, density.shape, strict=True)]
    lead = np.unravel_index(at, box.shape[:-2]) if box.ndim > 2 else ()
    corner = [a + i for a, i in zip(box.start, [*(int(i) for i in lead), *start], strict=True)]
    return Box(tuple(corner), tuple(c + n for c, n in zip(corner, (1,) * len(lead) + size, strict=True)))


def middle_detail(shape: Shape) -> Box:
    """Return a small window in the middle of a volume."""
    return _middle(shape, _DETAIL)


def _middle(shape: Shape, most: int) -> Box:
    lead = [n // 2 for n in shape[:-2]]
    size = [min(n, most) for n in shape[-2:]]
    start = [*lead, *((n - s) // 2 for n, s in zip(shape[-2:], size, strict=True))]
    return Box(tuple(start), tuple(a + s for a, s in zip(start, [1] * len(lead) + size, strict=True)))


def _middle_of(box: Box) -> Box:
    return _middle(box.shape, 2**12).shift(box.start)


def _plane(voxels: Array) -> Array:
    """Return label voxels ``(C, ..., Y, X)`` as one plane; of several channels the highest counts."""
    return np.asarray(voxels.max(axis=0).reshape(voxels.shape[-2:]))


def _chance(voxels: Array) -> Picture:
    """Return probabilities as grey: of the foreground, white is certain."""
    p = voxels.astype(np.float32) / (255 if voxels.dtype == np.uint8 else 1)
    # Soft-max tells the background first; a single channel, or those of multilabel, are foreground each.
    sums_to_one = len(p) > 1 and abs(float(p.sum(axis=0).mean()) - 1) < 0.02
    chance = (1 - p[0] if sums_to_one else p.max(axis=0)).reshape(voxels.shape[-2:])
    return np.asarray(np.repeat(chance[..., None].clip(0, 1), 3, axis=-1), np.float32)


def _overlaid(base: Picture | None, layer: Array, *, is_ids: bool) -> Picture:
    from unetflow.stages.panels import overlay

    under = np.full((*layer.shape, 3), 0.12, np.float32) if base is None else base
    if under.shape[:2] != layer.shape:
        under = np.full((*layer.shape, 3), 0.12, np.float32)
    return overlay(under, layer[None], Box.of_shape(layer.shape), is_ids=is_ids)


def _resized(image: Array, shape: Shape) -> Array:
    """Take the nearest voxels of ``(C, Y, X)``, so that pictures of one place have one size."""
    lengths = zip(shape, image.shape[1:], strict=True)
    index = [np.minimum((np.arange(n) + 0.5) * m / n, m - 1).astype(int) for n, m in lengths]
    return np.asarray(image[:, index[0][:, None], index[1][None]])


def encode(picture: Picture) -> str:
    """Return a picture ``(Y, X, 3)`` of 0..1 as a data URI."""
    from PIL import Image

    return _uri(Image.fromarray((picture * 255).round().clip(0, 255).astype(np.uint8)))


def encode_file(path: Path, widest: int = 1400) -> str:
    """Return a picture file as a data URI, no wider than some pixels."""
    from PIL import Image

    with Image.open(path) as picture:
        shown = picture.convert("RGB")
        if shown.width > widest:
            shown = shown.resize((widest, round(shown.height * widest / shown.width)))
        return _uri(shown)


def _uri(picture: Any) -> str:
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def raw_levels(request: dict[str, Any], name: str) -> list[Volume]:
    """Open the input of an output at all its levels; nothing where it is not there any more."""
    from unetflow.storage.volume import open_images

    shape = None
    table: dict[str, Any] = next((t for t in request["data"] if t["raw"] == request["volume"]), {})
    axes = table.get("axes") or request["images"][name]["axes"]
    first = int(table.get("level", 0))
    found: list[Volume] = []
    for level in range(first, first + 12):
        try:
            volume = open_images(request["volume"], axes=request["axes"], default_axes=axes, level=level)[name]
        except (InputError, FileNotFoundError, KeyError, OSError):
            break
        if volume.shape == shape:  # an array without levels is itself at each
            break
        shape = volume.shape
        found.append(volume)
    return found
