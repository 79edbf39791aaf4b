"""A link that opens an output behind a URL in neuroglancer, with its layers, colours and place.

References
----------
.. [1] Neuroglancer: state of the viewer in JSON, and the URLs of its zarr data source. github.com/google/neuroglancer.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from unetflow.stages.output_arrays import Levels, levels_of

if TYPE_CHECKING:
    from unetflow.stages.request import Record

VIEWER = "https://neuroglancer-demo.appspot.com/#!"
State = dict[str, Any]

_METERS = {"nanometer": 1e-9, "micrometer": 1e-6, "millimeter": 1e-3, "meter": 1.0}
_UNREADABLE = ("float16", "float64")  # the viewer reads neither
_SHADER = "#uicontrol invlerp normalized\nvoid main() {\n  emitGrayscale(normalized());\n}\n"


def links(record: Record, url: str) -> dict[str, str]:
    """Return a link for each image of an output that a browser reads from ``url``, by name: "" for a single one."""
    request = record.request or {}
    found = {}
    for name, image in request.get("images", {}).items():
        here, folder = (f"{place.rstrip('/')}/{name}".rstrip("/") for place in (record.out, url))
        raw = f"{request['volume']}/{name}" if name else str(request["volume"])
        state = viewer_state(folder, levels_of(here), image, raw if "://" in raw else None)
        found[name] = VIEWER + quote(json.dumps(state, separators=(",", ":")), safe="!*'(),:/")
    return found


def viewer_state(folder: str, arrays: dict[str, Levels], image: dict[str, Any], raw: str | None) -> State:
    """Return the state of the viewer for one image.

    Parameters
    ----------
    folder : str
        URL of the image.
    arrays : dict
        Its arrays, as `levels_of` gives them.
    image : dict
        What was recorded of it: ``start`` and ``shape`` in voxels, ``axes``, ``voxel_size``, ``unit``.
    raw : str, optional
        URL of the raw volume.
    """
    space = [axis for axis in image["axes"] if axis != "t"]
    places = dict(zip(image["axes"], zip(image["start"], image["shape"], strict=True), strict=True))
    meters = _METERS.get(image["unit"] or "")
    dimensions: dict[str, list[Any]] = {}
    for axis, length in zip(reversed(space), reversed(image["voxel_size"]), strict=True):
        dimensions[axis] = [length, ""] if meters is None else [float(f"{length * meters:.9g}"), "m"]
    if "t" in places:
        dimensions["t"] = [1, ""]
    layers = [] if raw is None else [_layer("raw", "image", raw)]
    has_instances = "labels/instances" in arrays
    for name, levels in arrays.items():
        if name:
            title = name.removeprefix("labels/")
            layer = _layer(title, "segmentation", f"{folder}/{name}")
            layers.append({**layer, "visible": title == "instances" or not has_instances})
        elif levels[0].dtype not in _UNREADABLE:
            layers.append({**_layer("probabilities", "image", folder), **_of_channel(levels[0].n_channels)})
    start_and_length = [places[axis] for axis in dimensions]
    return {
        "dimensions": dimensions,
        "position": [start + length // 2 + 0.5 for start, length in start_and_length],
        "crossSectionScale": max(1.0, max(length for _, length in start_and_length[:2]) / 800),
        "layers": layers,
        "selectedLayer": {"visible": True, "layer": layers[-1]["name"]} if layers else {},
        "layout": "4panel" if "z" in dimensions else "xy",
    }


def _layer(name: str, kind: str, url: str) -> State:
    return {"type": kind, "name": name, "source": f"{url.rstrip('/')}/|zarr:"}


def _of_channel(n_channels: int) -> State:
    """Show the last of two classes, or the first of more that is no background; the viewer has a slider for them."""
    return {
        "localDimensions": {"c'": [1, ""]},  # the viewer's name for an axis of channels
        "localPosition": [min(1, n_channels - 1)],
        "shader": _SHADER,
        "blend": "additive",
        "opacity": 0.5,
    }
