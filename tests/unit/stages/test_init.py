from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr

from unetflow.errors import InputError
from unetflow.settings import Settings, load_settings
from unetflow.stages.init import init
from unetflow.stages.look import Labels, find_kind, patch_shape, pooling
from unetflow.stages.template import SECTIONS

RNG = np.random.default_rng(0)


def save(path: Path, array: np.ndarray) -> str:
    zarr.save_array(str(path), array, zarr_format=2)
    return str(path)


def blobs(n: int, shape: tuple[int, int] = (96, 96)) -> np.ndarray:
    """Squares that do not touch, numbered from 1."""
    ids = np.zeros(shape, np.uint16)
    for number in range(n):
        y, x = divmod(number, 8)
        ids[12 * y + 2 : 12 * y + 9, 12 * x + 2 : 12 * x + 9] = number + 1
    return ids


def written(tmp_path: Path, raw: np.ndarray, labels: np.ndarray, **options: Any) -> tuple[dict[str, Any], Settings]:
    out = tmp_path / "unetflow.toml"
    report = init(
        save(tmp_path / "raw.zarr", raw), save(tmp_path / "labels.zarr", labels), out=str(out), **options
    )
    return report, load_settings(out)


def test_without_arrays_every_key_stands_commented_out_and_the_file_loads(tmp_path: Path) -> None:
    out = tmp_path / "unetflow.toml"
    init(out=str(out))
    lines = out.read_text().splitlines()
    for record in SECTIONS.values():
        for key in record.model_fields:
            assert any(line.startswith(f"# {key} =") for line in lines), key
    assert not any(line and line[0] not in "#[" for line in lines)
    assert load_settings(out) == Settings(folder=str(tmp_path))


def test_object_ids_are_instances(tmp_path: Path) -> None:
    report, settings = written(tmp_path, RNG.integers(0, 255, (96, 96), np.uint8), blobs(40))
    assert (report["kind"], settings.data[0].kind, settings.model.dims) == ("instances", "instances", 2)
    assert "instances" in settings.segment.outputs
    assert settings.data[0].raw == "raw.zarr"


def test_a_mask_of_0_and_255_becomes_classes_with_a_class_map(tmp_path: Path) -> None:
    _, settings = written(tmp_path, np.zeros((96, 96), np.uint8), (blobs(9) > 0).astype(np.uint8) * 255)
    assert settings.data[0].kind == "classes"
    assert settings.data[0].class_map == {0: 0, 255: 1}


def test_few_values_in_many_pieces_are_classes(tmp_path: Path) -> None:
    labels = save(tmp_path / "l.zarr", blobs(60) % 3)
    assert find_kind(Labels(labels)) == find_kind(Labels(labels))
    assert (find_kind(Labels(labels)).kind, find_kind(Labels(labels)).class_map) == ("classes", None)
    other = save(tmp_path / "m.zarr", (blobs(60) % 3) * 40)
    assert find_kind(Labels(other)).class_map == {0: 0, 40: 1, 80: 2}


def test_a_channel_axis_is_multilabel_and_takes_a_sigmoid(tmp_path: Path) -> None:
    out = tmp_path / "unetflow.toml"
    raw = save(tmp_path / "raw.zarr", np.zeros((96, 96), np.uint8))
    path = tmp_path / "labels.zarr"
    array = zarr.create_array(str(path), shape=(3, 96, 96), dtype="uint8", dimension_names=("c", "y", "x"))
    array[:] = 1
    init(raw, str(path), out=str(out))
    settings = load_settings(out)
    assert (settings.data[0].kind, settings.model.head) == ("multilabel", "sigmoid")


@pytest.mark.parametrize(
    ("shape", "size", "dims"),
    [((24, 80, 80), (2.2, 1, 1), 3), ((24, 80, 80), (12.5, 1, 1), 2), ((8, 80, 80), (1, 1, 1), 2)],
)
def test_three_dimensions_need_planes_that_are_many_and_near(
    tmp_path: Path, shape: tuple[int, ...], size: tuple[float, ...], dims: int
) -> None:
    labels = np.broadcast_to(blobs(36, (80, 80)), shape)
    _, settings = written(tmp_path, np.zeros(shape, np.uint8), np.array(labels), voxel_size=size)
    assert settings.model.dims == dims
    assert settings.data[0].voxel_size == size
    if dims == 3:
        assert settings.model.pool == ((1, 2, 2), (2, 2, 2), (2, 2, 2))


def test_pooling_brings_voxels_towards_cubes() -> None:
    assert pooling((1.0, 1.0), 2) == ([[2, 2], [2, 2]], [[3, 3]] * 3)
    assert pooling((8.0, 1.0, 1.0), 4)[0] == [[1, 2, 2], [1, 2, 2], [1, 2, 2], [2, 2, 2]]


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_output_of_a_patch_is_no_larger_than_asked(padding: str) -> None:
    from unetflow.architecture import UNetSpec

    model = {"dims": 2, "depth": 3, "padding": padding}
    shape = patch_shape(model, (100, 192))
    output = UNetSpec.build(**model).output_shape(shape)
    assert all(n >= 90 or n <= m for n, m in zip(output, (100, 192), strict=True))
    assert output[0] <= 100
    assert 180 < output[1] <= 192


def test_refusals_leave_no_file(tmp_path: Path) -> None:
    raw = save(tmp_path / "raw.zarr", np.zeros((96, 96), np.uint8))
    floats = save(tmp_path / "f.zarr", np.zeros((96, 96), np.float32))
    small = save(tmp_path / "s.zarr", blobs(4, (48, 96)))
    out = tmp_path / "unetflow.toml"
    for labels, message in ((floats, "integers"), (small, "shape"), (str(tmp_path / "no.zarr"), "no.zarr")):
        with pytest.raises(InputError, match=message):
            init(raw, labels, out=str(out))
        assert not out.exists()


def test_an_existing_file_is_kept_unless_told_otherwise(tmp_path: Path) -> None:
    out = tmp_path / "unetflow.toml"
    out.write_text("# mine\n")
    with pytest.raises(InputError, match="overwrite"):
        init(out=str(out))
    assert out.read_text() == "# mine\n"
    init(out=str(out), overwrite=True)
    assert out.read_text() != "# mine\n"
