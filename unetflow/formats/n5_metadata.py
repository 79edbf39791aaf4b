"""Axes and voxel sizes of N5 datasets, as ilastik, n5-viewer, BigDataViewer and neuroglancer write them.

=======================  ===============================================================
``axes``                 letters in N5's order, the fastest first
``axistags``             ilastik's, the slowest first
``pixelResolution``      lengths along x, y, z with a ``unit``, of the finest level
``resolution``           lengths in N5's order, with ``units``
``downsamplingFactors``  how many voxels of the finest level one voxel of this dataset spans
=======================  ===============================================================
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from unetflow.formats.hdf5_metadata import Described, axes_of_ilastik, ordered, valid_axes
from unetflow.formats.units import micrometres

log = logging.getLogger(__name__)


def describe(chain: Sequence[dict[str, Any]], n: int) -> Described:
    """Return axes and voxel size (micrometres, in their order) of a dataset of ``n`` axes, where they are known.

    Parameters
    ----------
    chain : sequence of dict
        Attributes of the dataset, then of the groups around it, the nearest first.

    Examples
    --------
    >>> describe([{"axes": ["x", "y"], "resolution": [4, 8], "units": ["nm", "nm"]}], 2)
    ('yx', (0.008, 0.004))
    """
    own = chain[0]
    labels = own.get("axes")
    axes = valid_axes([str(a) for a in reversed(labels)], n) if isinstance(labels, list) else None
    if axes is None:
        axes, sizes = axes_of_ilastik(own, n)
        if ordered(sizes, axes) is not None:
            return axes, ordered(sizes, axes)
    letters = axes[::-1] if axes else "xyz"[:n]
    for attributes in chain:
        lengths = _lengths(attributes, letters)
        if lengths:
            factors = _by_letter(own.get("downsamplingFactors"), letters)
            axes = axes or {2: "yx", 3: "zyx"}.get(n)
            sizes = {letter: length * factors.get(letter, 1.0) for letter, length in lengths.items()}
            return axes, ordered(sizes, axes)
    return axes, None


def _lengths(attributes: dict[str, Any], letters: str) -> dict[str, float]:
    """Return the micrometres of each spatial letter, where attributes have lengths with units."""
    values, units = attributes.get("resolution"), attributes.get("units")
    pixel = attributes.get("pixelResolution")
    if isinstance(pixel, dict):
        values, units = pixel.get("dimensions"), pixel.get("unit")
    elif pixel is not None:
        values, units = pixel, units or attributes.get("unit")
    lengths = _by_letter(values, letters)
    each = dict(zip(letters, units, strict=False)) if isinstance(units, list) else dict.fromkeys(letters, units)
    factors = {letter: micrometres(each.get(letter)) for letter in lengths}
    known = {letter: lengths[letter] * factor for letter, factor in factors.items() if factor is not None}
    if lengths and not known:
        log.warning("a resolution of %s in N5 attributes has no unit and is not used: give --voxel-size", values)
    return known


def _by_letter(values: Any, letters: str) -> dict[str, float]:
    """Return numbers above 0 by spatial letter: one for each axis, or one for each spatial axis."""
    spatial = [letter for letter in letters if letter in "xyz"]
    if not isinstance(values, list) or not all(isinstance(v, int | float) and v > 0 for v in values):
        return {}
    for order in (list(letters), spatial):
        if len(values) == len(order):
            return {letter: float(v) for letter, v in zip(order, values, strict=True) if letter in spatial}
    return {}
