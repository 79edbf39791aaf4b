"""A tiny project that integration tests share: a made volume, its dataset, a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unetflow.settings import Settings, make_settings

VALUES: dict[str, Any] = {
    "data": [{"raw": "raw.zarr", "labels": "labels.zarr", "kind": "instances"}],
    "prepare": {"patches": 8, "patch_shape": [1, 60, 60], "elastic_sigma": 2.0, "shard": [1, 64, 64]},
    "model": {"dims": 2, "depth": 2, "base_channels": 4, "norm": "batch"},
    "train": {"steps": 12, "batch_size": 2, "optimizer": "adam", "learning_rate": 0.01},
    "segment": {"outputs": ["probabilities", "classes", "instances"], "memory": "50 MB"},
}
SHAPE = (3, 100, 132)
SCALE = 90.0  # of what a made model sees


def make_volume(folder: Path, shape: tuple[int, ...] = SHAPE) -> None:
    """Write ``raw.zarr`` and ``labels.zarr``."""
    from unetflow.stages.synthetic import make_tissue

    size = (0.05, 0.01, 0.01)[-len(shape) :]
    make_tissue(str(folder / "raw.zarr"), str(folder / "labels.zarr"), shape, seed=3, voxel_size=size)


def settings_in(folder: Path, run: str = "run", **sections: dict[str, Any]) -> Settings:
    """Return the tiny settings, changed section by section."""
    values = {name: value for name, value in VALUES.items()}
    values["run"] = {"dir": run}
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return make_settings(values, folder=str(folder))


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of a result but the record of what the run did."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and ".unetflow" not in path.relative_to(folder).parts
    }


def make_model(path: Path, axes: str, voxel_size: tuple[float, ...] = (), **numbers: Any) -> Any:
    """Write a model of drawn weights that knows images of offset 128 and scale `SCALE`; return its predictor."""
    import torch

    from unetflow.architecture import UNetSpec
    from unetflow.nn.checkpoint import export_model
    from unetflow.nn.predict import Predictor
    from unetflow.nn.unet import UNet

    spec = UNetSpec.build(**{"depth": 2, "base_channels": 4, "out_channels": 3, **numbers})
    torch.manual_seed(2)
    model = UNet(spec)
    facts = {
        "kind": "classes", "n_classes": spec.out_channels, "class_map": None, "ignore": [], "dims": spec.dims,
        "in_channels": spec.in_channels, "axes": axes, "normalise": "none", "normalise_per": "volume",
        "normalisation": {"offset": [128.0] * spec.in_channels, "scale": [SCALE] * spec.in_channels},
        **({"voxel_size": list(voxel_size), "unit": "micrometer"} if voxel_size else {}),
    }  # fmt: skip
    export_model(path, model, facts)
    return Predictor(model)
