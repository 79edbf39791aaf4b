"""Which part of the annotated data trains and which validates, decided from shapes alone."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from unetflow.geometry import Box, Shape

if TYPE_CHECKING:
    from unetflow.stages.inputs import Item

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """The boxes, in label voxels, that training and validation patches keep to."""

    train: Box | None
    validation: Box | None

    def cut(self) -> tuple[int, int] | None:
        """Return the axis along which one volume serves both, and where validation begins there."""
        if self.train is None or self.validation is None:
            return None
        axis = next(a for a, (t, v) in enumerate(zip(self.train.start, self.validation.start, strict=True)) if t != v)
        return axis, self.validation.start[axis]


def plan_split(
    items: tuple[Item, ...], dims: int, output_shape: Shape, margin: Shape, fraction: float, seed: int
) -> tuple[Split, ...]:
    """Hold out images, planes or depth; the role of a table wins.

    Whole planes are held out of stacks that are taken plane by plane, whole images where
    there are several, else a slab at the far end of the longest axis, with a gap so that no
    training patch sees it.
    """
    if any(item.data.role == "validation" for item in items):
        return tuple(
            Split(item.region, None) if item.data.role == "train" else Split(None, item.region) for item in items
        )
    if fraction == 0:
        return tuple(Split(item.region, None) for item in items)
    n_lead = items[0].region.ndim - dims
    if n_lead and all(max(item.region.shape[:n_lead]) > 1 for item in items):
        return tuple(_hold_out_planes(item.region, n_lead, fraction) for item in items)
    if len(items) > 1:
        return _hold_out_images(items, fraction, seed)
    return (_hold_out_slab(items[0].region, dims, output_shape, margin, fraction),)


def _hold_out_images(items: tuple[Item, ...], fraction: float, seed: int) -> tuple[Split, ...]:
    count = min(len(items) - 1, max(1, round(fraction * len(items))))
    held = set(np.random.default_rng([seed, 2]).permutation(len(items))[:count].tolist())
    return tuple(
        Split(None, item.region) if index in held else Split(item.region, None) for index, item in enumerate(items)
    )


def _hold_out_planes(region: Box, n_lead: int, fraction: float) -> Split:
    axis = int(np.argmax(region.shape[:n_lead]))
    length = region.shape[axis]
    return _cut(region, axis, min(length - 1, max(1, round(fraction * length))), 0)


def _hold_out_slab(region: Box, dims: int, output_shape: Shape, margin: Shape, fraction: float) -> Split:
    lead = region.ndim - dims
    axis = int(np.argmax(region.shape[lead:]))
    length = region.shape[lead + axis]
    held = max(output_shape[axis], round(fraction * length))
    gap = margin[axis]
    if length - held - gap < output_shape[axis]:
        log.warning(
            "no part is held out for validation: %d voxels do not hold a training and a validation patch of %d; "
            'give another volume role = "validation"',
            length,
            output_shape[axis],
        )
        return Split(region, None)
    return _cut(region, lead + axis, held, gap)


def _cut(region: Box, axis: int, held: int, gap: int) -> Split:
    """Give the last ``held`` voxels of an axis to validation, all but ``gap`` of the rest to training."""
    border = region.stop[axis] - held
    stop = list(region.stop)
    stop[axis] = border - gap
    start = list(region.start)
    start[axis] = border
    return Split(Box(region.start, tuple(stop)), Box(tuple(start), region.stop))
