"""The arrays of an OME-Zarr output by name, from what is stored alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume

Levels = tuple["Volume", ...]


def image_names(out: str) -> list[str]:
    """Name the images of an output: "" for a single one.

    Raises
    ------
    InputError
        If there is no output.
    """
    from unetflow.storage import store

    root = store.find_node(out)
    if root is None:
        raise InputError(
            f"an output of unetflow segment is an OME-Zarr image or a group of them, got none at '{out}'; segment "
            "first, or name another"
        )
    if "ome" in root.attributes or store.find_node(store.join(out, "labels")) is not None:
        return [""]
    names = [n for n in store.list_names(out) if _is_image(store.join(out, n))]
    if not names:
        raise InputError(f"an output must hold probabilities or label images, got neither in '{out}'; segment again")
    return names


def levels_of(folder: str) -> dict[str, Levels]:
    """Open each multiscale array of one image: "" (the image itself), ``labels/classes``, ..."""
    from unetflow.storage import ngff, store

    found: dict[str, Levels] = {}
    if "multiscales" in ngff.get_attributes(folder).get("ome", {}):
        found[""] = _levels(folder)
    labels = store.find_node(store.join(folder, "labels"))
    for name in labels.attributes.get("ome", {}).get("labels", []) if labels is not None else []:
        found[f"labels/{name}"] = _levels(store.join(folder, "labels", name))
    return found


def stored_arrays(out: str) -> dict[str, Volume]:
    """Open every level of every array of an output, by its name below the output."""
    from unetflow.storage.store import join

    found = {}
    for image in image_names(out):
        for name, levels in levels_of(join(out, image) if image else out).items():
            for number, volume in enumerate(levels):
                found["/".join(part for part in (image, name, str(number)) if part)] = volume
    return found


def _levels(path: str) -> Levels:
    from unetflow.storage import ngff
    from unetflow.storage.volume import open_volume

    datasets: list[Any] = ngff.get_attributes(path)["ome"]["multiscales"][0]["datasets"]
    return tuple(open_volume(path, level=level) for level in range(len(datasets)))


def _is_image(path: str) -> bool:
    from unetflow.storage import store

    node = store.find_node(path)
    return node is not None and ("ome" in node.attributes or store.find_node(store.join(path, "labels")) is not None)
