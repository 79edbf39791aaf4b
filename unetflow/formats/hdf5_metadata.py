"""Axes and voxel sizes of HDF5 datasets, as ilastik, BigDataViewer and others write them.

====================  ==============================================================
``axistags``          ilastik: letter and resolution of each axis; ``axis_units`` their units
dimension labels      letters of ``tczyx``
``element_size_um``   micrometres along z, y, x (PlantSeg, Fiji)
BigDataViewer         ``/t00000/s00/0/cells`` is zyx; the ``.xml`` beside the file has the voxel size
====================  ==============================================================
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from unetflow.formats.units import micrometres

BDV_TABLES = ("resolutions", "subdivisions")

_BDV = re.compile(r"/t\d{5,}/s(\d{2,})/(\d+)/cells")

Described = tuple[str | None, tuple[float, ...] | None]


def is_of_bdv(name: str) -> bool:
    """Say whether a dataset's name is one that BigDataViewer gives."""
    return _BDV.fullmatch(name) is not None


def describe(file: Any, dataset: Any, path: str) -> Described:
    """Return axes and voxel size (micrometres, in their order) of a dataset, where they are known."""
    n = len(dataset.shape)
    bdv = _BDV.fullmatch(dataset.name)
    if bdv is not None and n == 3:
        return "zyx", _of_bdv(file, path, *bdv.groups())
    axes, sizes = axes_of_ilastik(dict(dataset.attrs), n)
    axes = axes or valid_axes([dimension.label for dimension in dataset.dims], n)
    element = np.ravel(dataset.attrs.get("element_size_um", ()))
    if len(element) in (2, 3):
        sizes = dict(zip("zyx"[-len(element) :], map(float, element), strict=True))
        axes = axes or {2: "yx", 3: "zyx"}.get(n)
    return axes, ordered(sizes, axes)


def axes_of_ilastik(attributes: dict[str, Any], n: int) -> tuple[str | None, dict[str, float]]:
    """Return the axes that ilastik's attributes name, and micrometres of those whose unit is known.

    Examples
    --------
    >>> tags = '{"axes": [{"key": "y", "resolution": 2}, {"key": "x", "resolution": 500}]}'
    >>> axes_of_ilastik({"axistags": tags, "axis_units": '{"y": "um", "x": "nm"}'}, 2)
    ('yx', {'y': 2.0, 'x': 0.5})
    """
    tags, units = _mapping(attributes.get("axistags")), _mapping(attributes.get("axis_units"))
    entries = [entry for entry in tags.get("axes") or [] if isinstance(entry, dict)]
    axes = valid_axes([str(entry.get("key", "")) for entry in entries], n)
    if axes is None:
        return None, {}
    sizes = {}
    for letter, entry in zip(axes, entries, strict=True):
        factor, resolution = micrometres(units.get(letter)), entry.get("resolution")
        if factor is not None and isinstance(resolution, int | float):
            sizes[letter] = float(resolution) * factor
    return axes, sizes


def valid_axes(labels: list[str], n: int) -> str | None:
    """Join labels to axes, or return None unless each is one letter of ``tczyx`` for one of ``n`` axes."""
    letters = [label.lower() for label in labels]
    is_valid = len(letters) == n == len(set(letters)) and all(a in ("t", "c", "z", "y", "x") for a in letters)
    return "".join(letters) if is_valid else None


def ordered(sizes: dict[str, float], axes: str | None) -> tuple[float, ...] | None:
    """Return the sizes of the spatial axes in order (z, y, x without axes), or None unless all are known."""
    spatial = [a for a in axes if a in "zyx"] if axes else sorted(sizes, reverse=True)
    if not spatial or not all(0 < sizes.get(a, 0.0) < np.inf for a in spatial):
        return None
    return tuple(sizes[a] for a in spatial)


def _of_bdv(file: Any, path: str, setup: str, level: str) -> tuple[float, ...] | None:
    """Return the voxel size of a level from the XML beside the file and the table of the levels."""
    try:
        root = ElementTree.parse(Path(path).with_suffix(".xml")).getroot()  # expat resolves no external entities
        factors = np.asarray(file[f"/s{setup}/resolutions"])[int(level)]
    except (OSError, ElementTree.ParseError, KeyError, IndexError):
        return None
    for entry in root.iter("ViewSetup"):
        if (entry.findtext("id") or "").strip() != str(int(setup)):
            continue
        unit = micrometres(entry.findtext("voxelSize/unit"))
        try:
            size = [float(v) for v in (entry.findtext("voxelSize/size") or "").split()]
        except ValueError:
            return None
        if unit is not None and len(size) == 3 == len(factors) and min(size) > 0:
            return tuple(float(s * f * unit) for s, f in zip(size, factors, strict=True))[::-1]
    return None


def _mapping(text: Any) -> dict[str, Any]:
    """Return an attribute that is JSON, as text or parsed, or an empty mapping."""
    if isinstance(text, bytes):
        text = text.decode(errors="replace")
    if isinstance(text, str):
        try:
            text = json.loads(text)
        except ValueError:
            return {}
    return text if isinstance(text, dict) else {}
