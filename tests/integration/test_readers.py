"""What segment writes opens in other software: ome-zarr, ome-zarr-models, tensorstore, the NGFF schemas."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import project
import pytest
import zarr

from unetflow.stages.segment import segment


@pytest.fixture(scope="module")
def output(trained: Path) -> Path:
    """A segmentation with pyramids and all three outputs."""
    out = trained / "readers.zarr"
    settings = project.settings_in(trained, segment={"shard": [1, 64, 64], "chunk": [1, 32, 32]})
    segment(settings, str(trained / "raw.zarr"), out=str(out))
    return out


def images(output: Path) -> dict[str, Path]:
    return {"": output, **{name: output / "labels" / name for name in ("classes", "instances")}}


def test_tensorstore_reads_the_voxels_that_zarr_reads(output: Path) -> None:
    tensorstore = pytest.importorskip("tensorstore")
    for path in images(output).values():
        store = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "0")}}
        there = tensorstore.open(store).result().read().result()
        assert np.array_equal(there, zarr.open_array(path / "0")[...])


def test_ome_zarr_finds_the_image_its_levels_and_its_labels(output: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ome_zarr.io import parse_url
        from ome_zarr.reader import Reader

        location = parse_url(str(output))
        assert location is not None
        nodes = list(Reader(location)())
    image = nodes[0]
    assert [axis["name"] for axis in image.metadata["axes"]] == ["c", "z", "y", "x"]
    assert image.data[0].shape == (2, *project.SHAPE)
    assert np.array_equal(np.asarray(image.data[0]), zarr.open_array(output / "0")[...])
    found = {Path(str(node.zarr.basename())).name for node in nodes}
    assert {"classes", "instances"} <= found


def test_ome_zarr_models_takes_image_and_labels(trained: Path, output: Path) -> None:
    v05 = pytest.importorskip("ome_zarr_models.v05")
    plain = trained / "plain.zarr"
    outputs = {"outputs": ["probabilities", "classes"]}
    segment(project.settings_in(trained, segment=outputs), str(trained / "raw.zarr"), out=str(plain))
    image = v05.Image.from_zarr(zarr.open_group(plain, mode="r"))
    sizes = image.attributes.ome.multiscales[0].datasets[0].coordinateTransformations[0].scale
    assert sizes == pytest.approx([1, 0.05, 0.01, 0.01])
    # Object ids carry no colours, which ome-zarr-models 1.6 takes for an image by itself, but not below another.
    for name in ("classes", "instances"):
        v05.image_label.ImageLabel.from_zarr(zarr.open_group(output / "labels" / name, mode="r"))


def test_the_schemas_hold(output: Path, data_folder: Path) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    schemas = [json.loads(p.read_text()) for p in (data_folder / "ngff_schemas/0.5/schemas").glob("*.schema")]
    registry = Registry().with_resources([(s["$id"], Resource.from_contents(s, DRAFT202012)) for s in schemas])
    for name, path in images(output).items():
        for kind in ("image", *(["label"] if name else [])):
            schema: Any = next(s for s in schemas if s["$id"].endswith(f"/{kind}.schema"))
            attributes = json.loads((path / "zarr.json").read_text())["attributes"]
            jsonschema.Draft202012Validator(schema, registry=registry).validate(attributes)


def test_the_levels_of_the_pyramid_are_means_and_modes(trained: Path) -> None:
    raw = np.random.default_rng(0).integers(0, 255, (700, 612)).astype(np.uint8)
    zarr.save_array(trained / "wide.zarr", raw)
    out = trained / "wide.unetflow.zarr"
    settings = project.settings_in(trained, segment={"outputs": ["probabilities", "classes"]})
    segment(settings, str(trained / "wide.zarr"), out=str(out))
    fine, coarse = (zarr.open_array(out / level)[...].astype(float) for level in "01")
    assert coarse.shape == (2, 350, 306)
    assert np.abs(fine.reshape(2, 350, 2, 306, 2).mean((2, 4)) - coarse).max() <= 0.5
    fine, coarse = (zarr.open_array(out / "labels" / "classes" / level)[...] for level in "01")
    votes = fine.reshape(350, 2, 306, 2).sum((1, 3), dtype=int)
    assert np.array_equal(coarse[votes != 2], votes[votes != 2] > 2)
    assert (coarse[votes == 2] == 0).all(), "a tie takes the lower class"
