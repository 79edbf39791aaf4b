"""The tiny project of the documentation's tests, and its commands in this process."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

PROJECT = """
[[data]]
raw = "raw.zarr"
labels = "labels.zarr"

[prepare]
patches = 4
patch_shape = [1, 60, 60]
elastic_sigma = 2.0

[model]
dims = 2
depth = 2
base_channels = 4

[train]
steps = 2
optimizer = "adam"

[segment]
outputs = ["probabilities", "classes", "instances"]
memory = "50 MB"
"""
# What `init` proposes trains for a quarter of an hour; these are numbers of the project above.
SMALL = ["prepare.patches=4", "train.steps=2", "model.base_channels=4"]
SHAPE = (3, 100, 132)
VOXEL_SIZE = (0.05, 0.01, 0.01)


@dataclass(frozen=True)
class Made:
    """A finished project."""

    folder: Path
    results: dict[str, dict[str, Any]]


def run(*words: object) -> Result:
    """Run a command in this process, without Dask."""
    from unetflow.cli import app

    chosen = [str(word) for word in words]
    if chosen[0] in ("convert", "prepare", "train", "segment", "evaluate", "verify") and "--cluster" not in chosen:
        chosen += ["--cluster", "none"]
    return CliRunner().invoke(app, chosen, env={"COLUMNS": "200"})


def make_project(folder: Path) -> Made:
    """Make a volume and take it through the stages, by their functions."""
    import unetflow
    from unetflow.settings import load_settings
    from unetflow.stages.synthetic import make_tissue

    (folder / "unetflow.toml").write_text(PROJECT)
    before = Path.cwd()
    os.chdir(folder)
    try:
        make_tissue("raw.zarr", "labels.zarr", SHAPE, seed=3, voxel_size=VOXEL_SIZE)
        settings = load_settings()
        results = {
            "convert": unetflow.convert("raw.zarr", "converted.zarr"),
            "prepare": unetflow.prepare(settings),
            "train": unetflow.train(settings),
            "segment": unetflow.segment(settings, "raw.zarr"),
            "evaluate": unetflow.evaluate(settings, "raw.unetflow.zarr", "labels.zarr"),
        }
    finally:
        os.chdir(before)
    return Made(folder, results)
