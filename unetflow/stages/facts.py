"""The record that `prepare` leaves in the dataset: all that training and segmenting need to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.stages.census import Census
from unetflow.stages.measure import normalisation_of
from unetflow.stages.prepare_plan import Plan
from unetflow.stages.work import digest_of, versions


def collect_facts(
    made: Plan,
    prints: dict[str, Any],
    spec: UNetSpec,
    histograms: list[list[Any]],
    census: Census,
    class_weights: np.ndarray[Any, Any],
    counts: dict[str, int],
) -> dict[str, Any]:
    """Return the dataset's attributes: all that training needs, and only what follows from the inputs."""
    from unetflow.numerics.intensity import add

    settings = made.settings
    method = settings.prepare.normalise
    training = [h for h, item in zip(histograms, made.items, strict=True) if item.data.role == "train"]
    merged = training[0]
    for other in training[1:]:
        merged = [add(a, b) for a, b in zip(merged, other, strict=True)]
    overall = normalisation_of(merged, method)
    volumes = []
    for item, h in zip(made.items, histograms, strict=True):
        own = overall if settings.prepare.normalise_per == "training" else normalisation_of(h, method)
        volumes.append({"table": item.table, "name": item.name, "offset": own[0], "scale": own[1]})
    first = made.items[0]
    places = {}
    for split in ("train", "validation"):
        if counts.get(split):
            places[split] = np.load(made.places_file(split))[:, 0].tolist()
    return {
        "settings": prints["settings"],
        "fingerprint": digest_of(prints),
        "seed": settings.run.seed,
        "inputs": prints["inputs"],
        "versions": versions(),
        "kind": first.data.kind,
        "n_classes": spec.out_channels if spec.head == "softmax" else max(2, spec.out_channels),
        "in_channels": first.raw.n_channels,
        "axes": first.raw.grid_axes,
        "dims": spec.dims,
        "voxel_size": list(first.raw.voxel_size),
        "unit": first.raw.unit,
        "dtype": first.raw.dtype,
        "class_counts": {str(k): n for k, n in sorted(census.counts.items())},
        "class_weights": class_weights.tolist(),
        "class_map": {str(k): v for k, v in (first.data.class_map or {}).items()} or None,
        "ignore": list(first.data.ignore),
        "normalise": method,
        "normalise_per": settings.prepare.normalise_per,
        "normalisation": {"offset": overall[0], "scale": overall[1]},
        "volumes": volumes,
        "patch_volume": places,
        "patch_shape": list(made.patch_shape),
        "output_shape": list(made.output_shape),
        "patches": counts,
    }


def read_facts(run_folder: Path) -> dict[str, Any]:
    """Return the record of a finished dataset.

    Raises
    ------
    InputError
        If there is no dataset, or an unfinished one.
    """
    from unetflow.storage.ngff import get_attributes

    path = run_folder / "dataset.zarr"
    if not (path / "zarr.json").is_file():
        raise InputError(f"train needs prepared patches, got none at {path}; run unetflow prepare first")
    facts = get_attributes(str(path)).get("unetflow")
    if not facts:
        raise InputError(f"train needs a finished prepare, got an unfinished one at {path}; run unetflow prepare again")
    return dict(facts)
