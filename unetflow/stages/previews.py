"""Pictures that tell at a glance whether weight maps and deformed patches are right.

::

    RUN/previews/weights-<n>.png      image n: raw | truth on raw | weight
    RUN/previews/patch-<number>.png   as it lies | deformed | truth on it | weight

Only crops of single planes are read, where training patches lie, so that a picture of a huge
volume costs no more than one of a small volume.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box, Shape

if TYPE_CHECKING:
    from unetflow.numerics.elastic import Field
    from unetflow.stages.inputs import Item
    from unetflow.stages.panels import Panels
    from unetflow.stages.sample import SampleBlock
    from unetflow.stages.truth import Truth
    from unetflow.storage.volume import Volume

_MOST_IMAGES, _MOST_PATCHES, _MOST_PLANES = 3, 4, 8
_PLACES_LOOKED_AT = 1000
_CROP = {2: 1024, 3: 512}  # a plane of a 3-D volume is read from chunks that are many planes thick

Array = npt.NDArray[Any]


def write_previews(task: SampleBlock, folder: Path) -> list[str]:
    """Draw weight maps and the first patches of a split.

    Parameters
    ----------
    task : SampleBlock
        What made the patches of the split; they are stored already.
    folder : pathlib.Path
        ``RUN/previews``; earlier previews in it are removed.

    Returns
    -------
    list of str
        The PNG files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for pattern in ("weights-*.png", "patch-*.png"):
        for old in folder.glob(pattern):
            old.unlink()
    places = np.load(task.places, mmap_mode="r")
    written = []
    for name, panels in _draw_all(task, places):
        written.append(str(folder / name))
        panels.save(written[-1])
    return written


def _draw_all(task: SampleBlock, places: Array) -> Iterator[tuple[str, Panels]]:
    first = np.asarray(places[:_PLACES_LOOKED_AT])
    for volume in sorted({int(v) for v in first[:, 0]})[:_MOST_IMAGES]:
        truth, weight = task.truths[volume], task.weights[volume]
        centres = [int(place) for place in first[first[:, 0] == volume, 1]]
        crop = choose_plane(truth, weight, centres, len(task.patch_shape))
        yield f"weights-{volume}.png", draw_weight(truth, weight, crop)
    for number in range(min(_MOST_PATCHES, len(places))):
        yield f"patch-{number:04d}.png", draw_patch(task, number, *(int(v) for v in places[number]))


def choose_plane(truth: Truth, weights: Volume, centres: list[int], dims: int) -> Box:
    """Return the crop of a plane, of a few, where most border weight stands.

    Parameters
    ----------
    truth, weights
        The image, and its weight map.
    centres : list of int
        Linear indices of voxels in the labels; the first few planes that hold one are looked at.
    dims : int
        Axes that the network sees.
    """
    shape = truth.item.labels.shape
    crops: dict[Shape, Box] = {}
    for centre in centres:
        at = tuple(int(i) for i in np.unravel_index(centre, shape))
        if len(crops) < _MOST_PLANES:
            crops.setdefault(at[:-2], _crop_around(at, shape, _CROP[dims]))
    boxes = list(crops.values())
    return boxes[0] if len(boxes) == 1 else max(boxes, key=lambda box: _border(truth, weights, box))


def _border(truth: Truth, weights: Volume, box: Box) -> tuple[float, int]:
    """Return how much weight stands on background beyond what all background weighs, and the foreground."""
    target = truth.read(box)[0]
    weight = weights.read(box).reshape(target.shape)
    return float(np.maximum(weight[target == 0] - weights.fill_value, 0).sum()), int(np.count_nonzero(target))


def _crop_around(at: Shape, shape: Shape, length: int) -> Box:
    """Return a box of one plane that holds ``at`` and lies inside the volume."""
    start, stop = list(at), [i + 1 for i in at]
    for axis in (-2, -1):
        n = min(length, shape[axis])
        start[axis] = min(max(at[axis] - n // 2, 0), shape[axis] - n)
        stop[axis] = start[axis] + n
    return Box(tuple(start), tuple(stop))


def draw_weight(truth: Truth, weights: Volume, crop: Box) -> Panels:
    """Draw raw, truth and weight map of a crop of one plane, given in label voxels."""
    from unetflow.stages.panels import Panels, grey, overlay

    item = truth.item
    plane = crop.shape[-2:]
    raw = item.raw.read(crop.shift(item.offset))
    image = grey(raw.reshape(len(raw), *plane))
    is_ids = item.data.kind == "instances"
    truths = (truth.read_ids(crop, None) if is_ids else truth.read(crop)[0]).reshape(-1, *plane)
    layers = _numbered(truths, truth.is_multilabel)
    weight = weights.read(crop).reshape(-1, *plane).max(0)
    whole = Box.of_shape(plane)
    title = f"{_name(item)}   {where(item.raw.grid_axes, crop.shift(item.offset))}"
    panels = Panels(title, plane, _aspect(item.raw))
    panels.add("raw", image)
    panels.add("truth", overlay(image, layers, whole, is_ids=is_ids))
    panels.add_weight(weight, whole)
    return panels


def draw_patch(task: SampleBlock, number: int, volume: int, place: int) -> Panels:
    """Draw the middle plane of one patch; grid lines show how it was bent.

    Parameters
    ----------
    number, volume, place : int
        Of the patch, its volume, and its centre as a linear index in the labels.
    """
    from unetflow.stages.panels import Panels, grey, overlay

    truth = task.truths[volume]
    image, target, weight = (middle(array[0], len(task.patch_shape)) for array in task.store.read([number]))
    still, field = task.draw_field(0, truth.item, still=True), task.draw_field(number, truth.item)
    start = task.start_of(volume, place, field)
    before = middle(task.make_patch(volume, place, still, start)[0], len(task.patch_shape))
    if np.array_equal(before, image):
        field = still  # it would have left nothing that counts, so the patch was taken as it lies
    output = Box.of_shape(target.shape[-2:]).shift(task.margin[-2:])
    is_ids = truth.item.data.kind == "instances"
    layers = _pieces(target) if is_ids else _numbered(target, truth.is_multilabel)
    shown = grey(image)
    panels = Panels(_patch_title(truth.item, number, place, field), image.shape[-2:], _aspect(truth.item.raw))
    panels.add("as it lies in the volume", grey(before), lines=_source_positions(still))
    panels.add("deformed", shown, lines=_source_positions(field))
    panels.add("truth", overlay(shown, layers, output, is_ids=is_ids), frame=output)
    panels.add_weight(weight.max(0), output)
    return panels


def _patch_title(item: Item, number: int, place: int, field: Field) -> str:
    centre = np.add(np.unravel_index(place, item.labels.shape), item.offset)
    here = Box.of_shape((1,) * len(centre)).shift(centre.tolist())
    scaled = f"   scaled by {field.factor:.2f} against folding" if field.was_scaled else ""
    return f"patch {number}   {_name(item)}   around {where(item.raw.grid_axes, here)}{scaled}"


def middle(array: Array, dims: int) -> Array:
    """Return the middle plane of ``([C, ][Z, ]Y, X)`` as ``(C, Y, X)``."""
    planes = array.reshape(-1, *array.shape[-dims:])
    return planes if dims == 2 else np.asarray(planes[:, planes.shape[1] // 2])


def _pieces(target: Array) -> Array:
    """Tell the objects of ``(1, Y, X)`` apart again, as the network would."""
    from skimage.measure import label

    return np.asarray(label(target, connectivity=1))


def _numbered(target: Array, is_multilabel: bool) -> Array:
    """Turn masks ``(K, Y, X)`` into the numbers 1 to K; the one plane of classes stays as it is."""
    return target * np.arange(1, len(target) + 1).reshape(-1, 1, 1) if is_multilabel else target


def _source_positions(field: Field) -> Array:
    """Return where each voxel of the middle plane comes from, ``(2, Y, X)``, along y and x."""
    lead = [n // 2 for n in field.shape[:-2]]
    plane = Box((*lead, 0, 0), (*(i + 1 for i in lead), *field.shape[-2:]))
    return np.asarray(field.coordinates(plane)[-2:].reshape(2, *field.shape[-2:]))


def _aspect(volume: Volume) -> float:
    return volume.voxel_size[-2] / volume.voxel_size[-1]


def _name(item: Item) -> str:
    return f"{Path(item.data.raw).name}, {item.title}"


def where(axes: str, box: Box, to: str = ":") -> str:
    """Name the box of a plane or a voxel; ``to`` stands between the first voxel and the end of a range.

    Examples
    --------
    >>> where("zyx", Box((4, 0, 0), (5, 60, 60)))
    'z 4, y 0:60, x 0:60'
    """
    along = zip(axes, box.start, box.stop, strict=True)
    return ", ".join(f"{letter} {a}" + (f"{to}{b}" if b > a + 1 else "") for letter, a, b in along)
