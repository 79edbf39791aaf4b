"""Read what OME-NGFF metadata say about an image: axes, levels, voxel sizes, positions.

Versions 0.1 to 0.6 differ in where they put the same few facts; `parse_image` gives one record.

References
----------
.. [1] https://ngff.openmicroscopy.org/0.5/ (sections "axes", "multiscales").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unetflow.errors import InputError
from unetflow.storage.store import Json, Node

AXES = "tczyx"
_UNITS = {  # in micrometres
    "angstrom": 1e-4, "nanometer": 1e-3, "micrometer": 1.0, "millimeter": 1e3, "centimeter": 1e4,
    "meter": 1e6, "nm": 1e-3, "um": 1.0, "µm": 1.0, "micron": 1.0, "mm": 1e3, "nanometre": 1e-3,
    "micrometre": 1.0, "millimetre": 1e3, "metre": 1e6,
}  # fmt: skip


@dataclass(frozen=True)
class Level:
    """One resolution of an image: its array's name, voxel size and first voxel, per stored axis."""

    name: str
    scale: tuple[float, ...]
    translation: tuple[float, ...]


@dataclass(frozen=True)
class Image:
    """An OME image: its stored axes, its levels, the unit of its spatial axes."""

    axes: str | None
    levels: tuple[Level, ...]
    unit: str | None


def is_image(node: Node) -> bool:
    """Say whether a group has multiscales metadata."""
    return node.kind == "group" and bool(_ome(node).get("multiscales"))


def plate_image(node: Node) -> str | None:
    """Return the path of an image in a high-content-screening plate; None if it is no plate."""
    plate = _ome(node).get("plate")
    if not isinstance(plate, dict):
        return None
    wells = plate.get("wells") or [{}]
    return f"{wells[0].get('path', 'A/1')}/0"


def parse_image(node: Node) -> Image:
    """Read the first multiscale image of a group.

    Raises
    ------
    InputError
        If the metadata are damaged, or transform voxels by more than scale and translation.
    """
    try:
        return _parse(_ome(node)["multiscales"][0])
    except InputError as cause:
        raise InputError(f"{cause}; in the image '{node.path}'") from None
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as cause:
        raise InputError(
            f"an OME image needs multiscales metadata that follow OME-NGFF, got '{node.path}' "
            f"({type(cause).__name__}: {cause}); name one of its arrays with --axes and --voxel-size"
        ) from cause


def _ome(node: Node) -> Json:
    inside = node.attributes.get("ome")
    return inside if isinstance(inside, dict) else node.attributes


def _parse(multiscale: Json) -> Image:
    names, units = _axes(multiscale)
    common = multiscale.get("coordinateTransformations") or []
    levels = []
    for dataset in multiscale["datasets"]:
        name = str(dataset["path"])
        if ".." in name.split("/") or name.startswith("/"):
            raise InputError(f"a level must lie inside its image, got the path '{name}'")
        steps = [*(dataset.get("coordinateTransformations") or []), *common]
        n_axes = len(names) if names else _length_of(steps)
        levels.append(Level(name, *_compose(steps, n_axes)))
    if not levels:
        raise InputError("an OME image needs a level, got none")
    axes = "".join(names) if names else None
    return _in_one_unit(axes, levels, units)


def _axes(multiscale: Json) -> tuple[list[str], list[str | None]]:
    """Return names and units of the stored axes; nothing for the first versions, which had none."""
    entries: list[Any] = multiscale.get("axes") or []
    systems = multiscale.get("coordinateSystems")
    if systems:  # 0.6
        steps = multiscale["datasets"][0]["coordinateTransformations"]
        target = steps[0].get("output") if steps else None
        target = target.get("name") if isinstance(target, dict) else target
        entries = next((s for s in systems if s.get("name") == target), systems[0])["axes"]
    records = [{"name": entry} if isinstance(entry, str) else entry for entry in entries]
    if not records:
        return [], []
    return [_letter(r) for r in records], [_spatial_unit(r) for r in records]


def _letter(axis: Json) -> str:
    name = str(axis["name"]).lower()
    if len(name) == 1 and name in AXES:
        return name
    return {"time": "t", "channel": "c"}.get(str(axis.get("type", name)), "?")


def _spatial_unit(axis: Json) -> str | None:
    return str(axis["unit"]) if axis.get("unit") and str(axis["name"]).lower() in "zyx" else None


def _length_of(steps: Sequence[Json]) -> int:
    return next((len(s["scale"]) for s in steps if s.get("type") == "scale"), 0)


def _compose(steps: Sequence[Json], n_axes: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fold transformations, first to last, into one scale and one translation."""
    scale, translation = [1.0] * n_axes, [0.0] * n_axes
    pending = list(steps)
    while pending:
        step = pending.pop(0)
        kind = step["type"]
        if kind == "sequence":
            pending = [*step["transformations"], *pending]
        elif kind == "scale":
            factor = _vector(step, "scale", n_axes)
            scale = [s * f for s, f in zip(scale, factor, strict=True)]
            translation = [t * f for t, f in zip(translation, factor, strict=True)]
        elif kind == "translation":
            shift = _vector(step, "translation", n_axes)
            translation = [t + s for t, s in zip(translation, shift, strict=True)]
        elif kind != "identity":
            raise InputError(
                f"an image may be moved by scale and translation only, got '{kind}'; "
                "name one of its arrays with --axes and --voxel-size"
            )
    return tuple(scale), tuple(translation)


def _vector(step: Json, name: str, n_axes: int) -> list[float]:
    values = [float(v) for v in step[name]]
    if len(values) != n_axes:
        raise InputError(f"a {name} needs one number for each of {n_axes} axes, got {values}")
    return values


def _in_one_unit(axes: str | None, levels: list[Level], units: list[str | None]) -> Image:
    """Bring axes of differing units to micrometres, so that voxel sizes can be compared."""
    known = [unit for unit in units if unit]
    if len(set(known)) <= 1:
        return Image(axes, tuple(levels), known[0] if known else None)
    unknown = [unit for unit in known if unit not in _UNITS]
    if unknown:
        raise InputError(
            f"axes of differing units need units of length, got '{unknown[0]}'; name one of the image's "
            "arrays with --axes and --voxel-size"
        )
    factor = [_UNITS[unit] if unit else 1.0 for unit in units]
    converted = tuple(
        Level(
            level.name,
            tuple(s * f for s, f in zip(level.scale, factor, strict=True)),
            tuple(t * f for t, f in zip(level.translation, factor, strict=True)),
        )
        for level in levels
    )
    return Image(axes, converted, "micrometer")
