"""From the ``[[data]]`` tables to pairs of raw and label volumes, every refusal included."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.errors import InputError
from unetflow.geometry import Box, parse_roi

if TYPE_CHECKING:
    from unetflow.settings import Data, Settings
    from unetflow.storage.volume import Volume


@dataclass(frozen=True)
class Item:
    """One annotated image: raw, labels and where they lie on each other.

    Parameters
    ----------
    table : int
        Number of the ``[[data]]`` table.
    name : str
        Name of the image in a collection; empty otherwise.
    offset : tuple of int
        First voxel of the labels, in voxels of the raw volume, per grid axis.
    region : Box
        The part of the *labels* that is used, in label voxels.
    """

    table: int
    name: str
    raw: Volume
    labels: Volume
    mask: Volume | None
    offset: tuple[int, ...]
    region: Box
    data: Data

    @property
    def title(self) -> str:
        """Name for messages and pictures."""
        return f"data {self.table}" + (f" image {self.name}" if self.name else "")

    def voxel_ratio(self, dims: int) -> tuple[float, ...]:
        """Return the voxel size along the network's axes in units of the finest of them."""
        sizes = self.raw.voxel_size[-dims:]
        return tuple(size / min(sizes) for size in sizes)


def open_items(settings: Settings) -> tuple[Item, ...]:
    """Open every ``[[data]]`` table and pair raw with labels.

    Raises
    ------
    InputError
        If a path is missing, an image has no partner, or shapes, axes or dtypes disagree.
    """
    if not settings.data:
        raise InputError(
            "prepare needs at least one [[data]] table or the arguments RAW LABELS, got none; "
            "write one with: unetflow init RAW LABELS"
        )
    items: list[Item] = []
    for number, data in enumerate(settings.data):
        items += _open_table(settings, number, data)
    _check_alike(items)
    if not any(item.data.role == "train" for item in items):
        raise InputError('one [[data]] table must have role = "train", got only validation')
    return tuple(items)


def pair_names(left: list[str], right: list[str]) -> list[tuple[str, str]]:
    """Pair images by name, else by the single number in each name.

    Examples
    --------
    >>> pair_names(["t002", "t010"], ["man_seg010", "man_seg002"])
    [('t002', 'man_seg002'), ('t010', 'man_seg010')]
    """
    if set(left) == set(right):
        return [(name, name) for name in left]
    by_number = [{_single_number(name): name for name in names} for names in (left, right)]
    if None in by_number[0] or None in by_number[1] or any(
        len(table) != len(names) for table, names in zip(by_number, (left, right), strict=True)
    ):
        by_number = [{name: name for name in left}, {name: name for name in right}]  # type: ignore[misc]
    alone = sorted(map(str, by_number[0].keys() ^ by_number[1].keys()))
    if alone:
        raise InputError(
            "every raw image needs a label image of the same name, or of the same single number in its name; "
            f"without a partner: {', '.join(alone[:5])}"
        )
    return [(name, by_number[1][key]) for key, name in by_number[0].items()]


def _single_number(name: str) -> int | None:
    numbers = re.findall(r"\d+", name)
    return int(numbers[0]) if len(numbers) == 1 else None


def _open_table(settings: Settings, number: int, data: Data) -> list[Item]:
    from unetflow.storage.volume import open_images

    raws = open_images(settings.resolve(data.raw), default_axes=data.axes, voxel_size=data.voxel_size, level=data.level)
    label_axes = data.axes if data.kind == "multilabel" else without_channels(data.axes)
    labels = open_images(settings.resolve(data.labels), default_axes=label_axes, voxel_size=data.voxel_size)
    masks: dict[str, Any] = {}
    if data.mask is not None:
        mask_axes = without_channels(data.axes)
        masks = open_images(settings.resolve(data.mask), default_axes=mask_axes, voxel_size=data.voxel_size)
    pairs = [("", "")] if list(raws) == list(labels) == [""] else pair_names(list(raws), list(labels))
    return [
        _make_item(number, data, raw, raws[raw], labels[label], masks.get(raw) or masks.get(label))
        for raw, label in pairs
    ]


def without_channels(axes: str | None) -> str | None:
    """Return the axes of labels that belong to raw data of these axes."""
    return axes.replace("c", "") if axes else None


def _make_item(number: int, data: Data, name: str, raw: Volume, labels: Volume, mask: Volume | None) -> Item:
    where = f"data {number}" + (f", image {name}" if name else "")
    kind = np.dtype(labels.dtype).kind
    if kind not in "iub":
        raise InputError(
            f"{where}: labels must be integers, got {labels.dtype} in {labels.path}; save them as "
            "integers, for instance with .astype(numpy.uint32)"
        )
    if raw.grid_axes != labels.grid_axes:
        raise InputError(
            f"{where}: raw and labels must have the same axes, got {raw.grid_axes} and {labels.grid_axes}; give axes"
        )
    if data.kind == "multilabel" and not labels.has_channels:
        raise InputError(f"{where}: multilabel needs labels with a c axis of 0/1 masks, got axes {labels.axes}")
    if data.kind != "multilabel" and labels.n_channels != 1:
        raise InputError(
            f'{where}: {data.kind} needs labels of one channel, got {labels.n_channels}; or use kind = "multilabel"'
        )
    roi = parse_roi(data.roi, raw.shape) if data.roi else raw.box
    offset = _label_offset(where, raw, labels, roi if data.roi else None)
    covered = labels.box.shift(offset)
    if not raw.box.contains(covered):
        raise InputError(
            f"{where}: labels must lie inside the raw volume {raw.shape}, got {labels.shape} at {offset}; "
            "crop them or give their translation"
        )
    region = covered.intersect(roi)
    if region.size == 0:
        raise InputError(f"{where}: roi must overlap the labels at {covered}, got {data.roi}")
    if mask is not None and mask.shape != labels.shape:
        raise InputError(f"{where}: mask must have the labels' shape {labels.shape}, got {mask.shape}")
    return Item(number, name, raw, labels, mask, offset, region.relative_to(covered), data)


def _label_offset(where: str, raw: Volume, labels: Volume, roi: Box | None) -> tuple[int, ...]:
    if labels.shape == raw.shape and labels.translation == raw.translation:
        return (0,) * raw.ndim
    lead = len(raw.grid_axes) - len(raw.spatial_axes)
    steps = [
        (there - here) / size
        for there, here, size in zip(labels.translation, raw.translation, raw.voxel_size, strict=True)
    ]
    if any(abs(step) > 1e-6 for step in steps):
        if any(abs(step - round(step)) > 1e-3 for step in steps):
            raise InputError(f"{where}: labels must lie on whole voxels of the raw volume, got an offset of {steps}")
        return (0,) * lead + tuple(round(step) for step in steps)
    if roi is not None and labels.shape == roi.shape:
        return roi.start
    if labels.shape != raw.shape:
        raise InputError(
            f"{where}: labels must have the shape of the raw volume {raw.shape}, or that of roi, got {labels.shape} in "
            f"{labels.path}; where they cover a part of it, say which one with roi or a translation"
        )
    return (0,) * raw.ndim


def _check_alike(items: list[Item]) -> None:
    first = items[0]
    for item in items[1:]:
        for what, here, there in (
            ("axes", first.raw.grid_axes, item.raw.grid_axes),
            ("channels", first.raw.n_channels, item.raw.n_channels),
            ("dtype", first.raw.dtype, item.raw.dtype),
            ("kind", first.data.kind, item.data.kind),
        ):
            if here != there:
                raise InputError(f"all training volumes need the same {what}, got {here} and {there} in {item.title}")
