"""Axes and voxel sizes from the metadata of OME-TIFF and ImageJ."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from unetflow.formats.units import micrometres


def axes_of(axes: str) -> str | None:
    """Translate tifffile's letters to ``tczyx``; None where one has no meaning here.

    Samples (S) are channels. I and Q only say that pages follow one another.

    Examples
    --------
    >>> axes_of("ZYXS"), axes_of("IYX")
    ('zyxc', None)
    """
    letters = axes.lower().replace("s", "c")
    if set(letters) <= set("tczyx") and len(set(letters)) == len(letters):
        return letters
    return None


def voxel_size_of(file: Any, axes: str | None) -> tuple[float, ...] | None:
    """Return micrometres per spatial axis, or None where OME or ImageJ do not tell all.

    The resolution tags of other software count dots an inch for printers and mean nothing.
    """
    if axes is None:
        return None
    if file.is_ome:
        known = _from_ome(file.ome_metadata)
    elif file.is_imagej:
        known = _from_imagej(file)
    else:
        known = {}
    spatial = [letter for letter in axes if letter in "zyx"]
    if any(not known.get(letter) for letter in spatial):
        return None
    return tuple(known[letter] for letter in spatial)


def _from_ome(text: str) -> dict[str, float]:
    try:
        root = ElementTree.fromstring(text)  # expat resolves no external entities
    except ElementTree.ParseError:
        return {}
    pixels = next((e for e in root.iter() if e.tag.rpartition("}")[2] == "Pixels"), None)
    if pixels is None:
        return {}
    known = {}
    for letter in "zyx":
        size = pixels.get(f"PhysicalSize{letter.upper()}")
        unit = pixels.get(f"PhysicalSize{letter.upper()}Unit", "µm")
        factor = micrometres(unit)
        if size is not None and factor is not None:
            known[letter] = float(size) * factor
    return known


def _from_imagej(file: Any) -> dict[str, float]:
    metadata = file.imagej_metadata or {}
    factor = micrometres(metadata.get("unit"))
    if factor is None:
        return {}
    known = {}
    tags = file.pages[0].tags
    for letter, tag in (("x", "XResolution"), ("y", "YResolution")):
        if tag in tags:
            per_unit, units = tags[tag].value
            known[letter] = factor * units / per_unit if per_unit and units else 0.0
    if "spacing" in metadata:
        known["z"] = factor * abs(float(metadata["spacing"]))
    return known
