"""The table of objects tells what scikit-image measures of the stored instances, for any cut."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import project
import pyarrow.csv
import pyarrow.parquet
import pytest
import zarr
from scipy import ndimage
from skimage.measure import regionprops

from unetflow.settings import Settings
from unetflow.stages.segment import segment


def settings_of(folder: Path, **changes: Any) -> Settings:
    return project.settings_in(folder, segment=changes)


def read(out: Path, name: str) -> np.ndarray:
    return np.asarray(zarr.open_array(out / "labels" / name / "0")[:])


@pytest.fixture(scope="module")
def outputs(trained: Path) -> list[Path]:
    """The same segmentation, cut in two ways."""
    made = []
    for number, shard in enumerate(([1, 100, 132], [1, 32, 64])):
        out = trained / f"table-{number}.zarr"
        settings = settings_of(trained, shard=shard, chunk=shard, threshold=0.55)
        segment(settings, str(trained / "raw.zarr"), out=str(out))
        made.append(out)
    return made


def test_the_table_is_what_scikit_image_measures(outputs: list[Path]) -> None:
    out = outputs[0]
    ids = read(out, "instances").astype(np.int64)
    p = 1 - np.asarray(zarr.open_array(out / "0")[0]) / 255
    table = pyarrow.parquet.read_table(out / "objects.parquet").to_pydict()
    found = regionprops(ids, intensity_image=p)
    assert len(found) > 10
    assert table["id"] == [o.label for o in found] == list(range(1, ids.max() + 1))
    assert table["voxels"] == [o.area for o in found]
    size = (0.05, 0.01, 0.01)
    np.testing.assert_allclose(table["volume"], [o.area * np.prod(size) for o in found])
    np.testing.assert_allclose(table["mean_probability"], [o.intensity_mean for o in found])
    for axis, name in enumerate("zyx"):
        np.testing.assert_allclose(table[f"centroid_{name}"], [o.centroid[axis] * size[axis] for o in found])
        assert table[f"start_{name}"] == [o.bbox[axis] for o in found]
        assert table[f"stop_{name}"] == [o.bbox[axis + 3] for o in found]
    ends = [o.bbox[1] == 0 or o.bbox[2] == 0 or o.bbox[4] == 100 or o.bbox[5] == 132 for o in found]
    assert table["touches_border"] == ends
    assert 0 < sum(ends) < len(ends)


def test_parquet_csv_and_attributes_agree(outputs: list[Path]) -> None:
    table = pyarrow.parquet.read_table(outputs[0] / "objects.parquet")
    assert pyarrow.csv.read_csv(outputs[0] / "objects.csv").to_pydict() == table.to_pydict()
    told = json.loads((outputs[0] / "labels" / "instances" / "zarr.json").read_text())["attributes"]["unetflow"]
    assert told["objects"] == table.num_rows
    sizes = np.array(table["voxels"])
    edges = [*told["sizes"]["from"], 2 * told["sizes"]["from"][-1]]
    assert told["sizes"]["objects"] == np.histogram(sizes, edges)[0].tolist()


def test_any_cut_gives_the_same_bytes(outputs: list[Path]) -> None:
    for name in ("objects.parquet", "objects.csv", "labels/instances/zarr.json"):
        assert (outputs[0] / name).read_bytes() == (outputs[1] / name).read_bytes()


def test_readers_of_ome_zarr_open_what_the_table_lies_in(outputs: list[Path]) -> None:
    import ome_zarr.io
    import ome_zarr.reader
    from ome_zarr_models.v05.image_label import ImageLabel

    location = ome_zarr.io.parse_url(str(outputs[0]))
    assert location is not None
    assert len(list(ome_zarr.reader.Reader(location)())) >= 1
    ImageLabel.from_zarr(zarr.open_group(outputs[0] / "labels" / "instances", mode="r"))


def test_holes_are_filled_as_scipy_fills_those_of_the_whole_plane(trained: Path, outputs: list[Path]) -> None:
    mask = read(outputs[0], "classes") > 0
    filled = np.stack([ndimage.binary_fill_holes(plane) for plane in mask])
    holes = [ndimage.label(f & ~m) for f, m in zip(filled, mask, strict=True)]
    sizes = np.concatenate([np.bincount(labels.ravel())[1:] for labels, _ in holes])
    assert len(sizes) > 1, "the test needs holes"
    most = int(np.median(sizes))
    small = mask.copy()
    for plane, (labels, _) in zip(small, holes, strict=True):
        plane |= (labels > 0) & (np.bincount(labels.ravel())[labels] <= most)
    for wanted, expected in ((True, filled), (most, small)):
        out = trained / f"filled-{wanted}.zarr"
        settings = settings_of(trained, shard=[1, 32, 64], chunk=[1, 32, 64], threshold=0.55, fill_holes=wanted)
        segment(settings, str(trained / "raw.zarr"), out=str(out))
        assert np.array_equal(read(out, "instances") > 0, expected)
        assert np.array_equal(read(out, "classes") > 0, mask)


def test_more_objects_than_32_bits_count_make_instances_wider(
    trained: Path, outputs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetflow.stages.outputs.INSTANCE_TYPES", ("uint8", "uint64"))
    noisy = trained / "noisy.zarr"
    zarr.save_array(noisy, np.random.default_rng(0).integers(0, 255, project.SHAPE, np.uint8))
    out = trained / "widened.zarr"
    settings = settings_of(trained, shard=[1, 32, 64], chunk=[1, 32, 64])
    count = segment(settings, str(noisy), out=str(out))["objects"]
    found = zarr.open_array(out / "labels" / "instances" / "0")
    assert (count > 255, found.dtype) == (True, np.uint64)
    assert found[:].max() == count
