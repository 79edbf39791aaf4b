"""An exported model is valid bioimage.io, and gives its test output without this package."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import unetflow
from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.nn.checkpoint import export_model as write_model
from unetflow.nn.unet import UNet
from unetflow.numerics.intensity import histogram, normalisation, normalise
from unetflow.stages.bioimage import normalise_as_told

RECORD: dict[str, Any] = {
    "kind": "instances", "n_classes": 2, "in_channels": 1, "axes": "zyx", "voxel_size": [0.05, 0.004, 0.004],
    "dtype": "uint8", "normalise": "percentile", "normalise_per": "volume",
    "normalisation": {"offset": [120.0], "scale": [80.0]},
}  # fmt: skip
TWO_CHANNELS = {"normalise_per": "training", "normalisation": {"offset": [120.0, 3.0], "scale": [80.0, 9.0]}}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "paper": ({}, {}),
    "keras": (
        {"padding": "same", "upsample": "resize", "head": "sigmoid", "out_channels": 1, "in_channels": 2,
         "extra_conv": 2, "norm": "layer"},
        TWO_CHANNELS,
    ),
    "volumes": (
        {"dims": 3, "pool": [[1, 2, 2]], "upsample": "resize", "skip": "sum", "norm": "batch"},
        {"normalise": "zscore", "dtype": "float32"},
    ),
}  # fmt: skip

# All that another program knows: the description, and that the weights are TorchScript.
PLAIN = """
import io, sys, warnings, zipfile
import numpy as np, yaml
warnings.simplefilter("ignore")
import torch

def prepared(image, steps):
    spatial = tuple(range(2, image.ndim))
    for step in steps:
        words = step.get("kwargs", {})
        if step["id"] == "ensure_dtype":
            image = image.astype(words["dtype"])
        elif step["id"] == "scale_range":
            low, high = (np.percentile(image, words[k], axis=spatial, keepdims=True)
                         for k in ("min_percentile", "max_percentile"))
            image = (image - low) / (high - low + words.get("eps", 1e-6))
        elif step["id"] == "zero_mean_unit_variance":
            image = (image - image.mean(spatial, keepdims=True)) / (image.std(spatial, keepdims=True) + 1e-6)
        elif step["id"] == "scale_linear":
            gain, offset = (np.reshape(words[k], (-1, *[1] * len(spatial))) for k in ("gain", "offset"))
            image = image * gain + offset
        else:
            raise ValueError(step)
    return torch.from_numpy(image.astype("float32"))

for path in sys.argv[1:]:
    package = zipfile.ZipFile(path)
    told = yaml.safe_load(package.read("rdf.yaml"))
    told_in, told_out = told["inputs"][0], told["outputs"][0]
    image, wanted = (np.load(io.BytesIO(package.read(t["test_tensor"]["source"]))) for t in (told_in, told_out))
    assert image.dtype == told_in["data"]["type"]
    network = torch.jit.load(io.BytesIO(package.read(told["weights"]["torchscript"]["source"])))
    with torch.no_grad():
        found = network(prepared(image, told_in["preprocessing"])).numpy()
        assert found.shape == wanted.shape and wanted.std() > 1e-3
        assert np.allclose(found, wanted, rtol=1e-4, atol=1e-5), abs(found - wanted).max()
        for n in (0, 2):  # sizes that the description promises, in batches of two
            sizes = [a["size"]["min"] + n * a["size"]["step"] for a in told_in["axes"][2:]]
            made = network(torch.zeros(2, image.shape[1], *sizes))
            offsets = [a["size"].get("offset", 0) for a in told_out["axes"][2:]]
            assert list(made.shape[2:]) == [s + o for s, o in zip(sizes, offsets)]
            assert all(n > 2 * a.get("halo", 0) for n, a in zip(made.shape[2:], told_out["axes"][2:]))
    assert "unetflow" not in sys.modules
    print("same")
"""


def saved(folder: Path, name: str) -> Path:
    numbers, facts = CASES[name]
    torch.manual_seed(0)
    path = folder / f"{name}.safetensors"
    write_model(path, UNet(UNetSpec.build(**{"depth": 1, "base_channels": 4, **numbers})), {**RECORD, **facts})
    return path


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An exported model of each kind."""
    folder = tmp_path_factory.mktemp("exported")
    made = {}
    for name in CASES:
        result = unetflow.export_model(saved(folder, name), folder / f"{name}.zip", license="CC-BY-4.0", authors=["A"])
        assert (result.path, result.bytes) == (folder / f"{name}.zip", (folder / f"{name}.zip").stat().st_size)
        made[name] = result.path
    assert {path.name for path in folder.glob("*")} == {f"{n}.{end}" for n in CASES for end in ("safetensors", "zip")}
    return made


def test_it_passes_the_validation_of_the_format(packages: dict[str, Path]) -> None:
    from bioimageio.spec import InvalidDescr, load_description

    for path in packages.values():
        found = load_description(path, perform_io_checks=True)
        assert not isinstance(found, InvalidDescr), found.validation_summary.display()
        assert found.validation_summary.status != "failed"
        assert [author.name for author in found.authors] == ["A"]


def test_a_plain_process_with_torch_alone_gives_the_test_output(packages: dict[str, Path]) -> None:
    command = [sys.executable, "-I", "-c", PLAIN, *map(str, packages.values())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["same"] * len(packages)


def test_what_it_tells_of_voxels_and_channels_is_the_models(packages: dict[str, Path]) -> None:
    told = yaml.safe_load(zipfile.ZipFile(packages["volumes"]).read("rdf.yaml"))
    axes = {axis.get("id", axis["type"]): axis for axis in told["inputs"][0]["axes"]}
    assert [axes[a]["scale"] for a in "zyx"] == RECORD["voxel_size"]
    assert [axes[a]["size"]["step"] for a in "zyx"] == [1, 2, 2]
    keras = yaml.safe_load(zipfile.ZipFile(packages["keras"]).read("rdf.yaml"))
    assert keras["outputs"][0]["axes"][1]["channel_names"] == ["foreground"]


@pytest.mark.parametrize("method", ["percentile", "zscore", "none"])
def test_images_are_normalised_as_segment_does(method: str) -> None:
    image = np.random.default_rng(0).gamma(3, 20, (1, 1, 40, 50)).astype(np.uint8)
    ours = normalise(image, *normalisation(histogram(image[0, 0]), method))
    told = normalise_as_told(image, {**RECORD, "normalise": method})
    assert np.allclose(told, ours, atol=1e-5)
    training = {**RECORD, "normalise_per": "training", "normalise": method}
    fixed = normalise(image, 0.0, 1.0) if method == "none" else normalise(image, 120.0, 80.0)
    assert np.allclose(normalise_as_told(image, training), fixed, atol=1e-5)


def test_an_export_that_cannot_be_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    model = saved(tmp_path, "paper")
    with pytest.raises(InputError, match=r"is a \.zip"):
        unetflow.export_model(model, tmp_path / "cells")
    with pytest.raises(InputError, match="refuses the description: license"):
        unetflow.export_model(model, tmp_path / "cells.zip", license="my own")
    (tmp_path / "there.zip").touch()
    with pytest.raises(InputError, match="must not exist yet"):
        unetflow.export_model(model, tmp_path / "there.zip")
    assert {p.name for p in tmp_path.iterdir()} == {"paper.safetensors", "there.zip"}
