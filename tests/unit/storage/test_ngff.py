"""Images that we write: valid by the schemas of OME-NGFF, with pyramids towards cubes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetflow.errors import InputError
from unetflow.storage.ngff import (
    create_group,
    create_image,
    create_labels_group,
    get_attributes,
    level_shapes,
    set_attributes,
)
from unetflow.storage.volume import open_volume


def make(path: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {
        "axes": "tczyx", "shape": (2, 50, 600, 500), "n_channels": 2, "dtype": "uint8",
        "chunk": (1, 32, 32, 32), "shard": (1, 64, 64, 64), "voxel_size": (4.0, 1.0, 1.0), **options,
    }  # fmt: skip
    return create_image(path, **settings)


def check(data_folder: Path, path: Path, name: str) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    from referencing import Registry, Resource

    schemas = [json.loads(p.read_text()) for p in (data_folder / "ngff_schemas/0.5/schemas").glob("*.schema")]
    registry = Registry().with_resources([(s["$id"], Resource.from_contents(s, _draft())) for s in schemas])
    schema = next(s for s in schemas if s["$id"].endswith(f"/{name}.schema"))
    jsonschema.Draft202012Validator(schema, registry=registry).validate(get_attributes(path))


def _draft() -> Any:
    from referencing.jsonschema import DRAFT202012

    return DRAFT202012


def test_an_image_and_its_labels_follow_the_schemas(data_folder: Path, tmp_path: Path) -> None:
    make(tmp_path / "im", channel_names=["membrane", "cell"], attributes={"unetflow": {"a": 1}})
    create_labels_group(tmp_path / "im", ["classes"])
    labels = tmp_path / "im" / "labels" / "classes"
    make(labels, axes="tzyx", n_channels=None, label=True)
    check(data_folder, tmp_path / "im", "image")
    check(data_folder, tmp_path / "im", "strict_image")
    check(data_folder, labels, "image")
    check(data_folder, labels, "label")
    assert get_attributes(tmp_path / "im")["unetflow"] == {"a": 1}
    assert get_attributes(tmp_path / "im" / "labels") == {"ome": {"version": "0.5", "labels": ["classes"]}}


@pytest.mark.parametrize("axes", ["yx", "zyx", "cyx", "tyx", "tcyx", "tczyx"])
def test_levels_open_as_they_were_made(tmp_path: Path, axes: str) -> None:
    grid = axes.replace("c", "")
    n_spatial = len(grid) - ("t" in grid)
    levels = make(
        tmp_path / "im", axes=axes, shape=(3, 300, 700)[-len(grid) :] if len(grid) < 4 else (2, 3, 300, 700),
        n_channels=3 if "c" in axes else None, chunk=(1,) * (len(grid) - 2) + (32, 32), shard=None,
        voxel_size=(3, 2, 2)[-n_spatial:], translation=(6, 5, 4)[-n_spatial:], unit="nanometer",
    )  # fmt: skip
    assert len(levels) > 1
    for number, level in enumerate(levels):
        assert open_volume(tmp_path / "im", level=number) == level
        assert level.level == number
        assert level.image_path == str(tmp_path / "im")
        assert level.unit == "nanometer"
        assert level.n_channels == (3 if "c" in axes else 1)


def test_coarser_levels_stand_on_the_centres_of_what_they_pool(tmp_path: Path) -> None:
    levels = make(tmp_path / "im", voxel_size=(4, 1, 1), translation=(0, 10, 20))
    assert [level.shape for level in levels] == [(2, 50, 600, 500), (2, 50, 300, 250), (2, 50, 150, 125)]
    assert [level.translation for level in levels] == [(0, 10, 20), (0, 10.5, 20.5), (0, 11.5, 21.5)]
    assert [level.voxel_size for level in levels] == [(4, 1, 1), (4, 2, 2), (4, 4, 4)]


def test_the_number_of_levels_may_be_limited(tmp_path: Path) -> None:
    assert len(make(tmp_path / "im", n_levels=1)) == 1


@given(
    shape=st.tuples(*[st.integers(1, 5000)] * 3),
    voxel_size=st.tuples(*[st.sampled_from([0.3, 1.0, 2.0, 5.0, 40.0])] * 3),
    n_times=st.none() | st.integers(1, 9),
)
def test_pyramids_end_keep_the_extent_and_never_worsen_the_voxels(
    shape: tuple[int, ...], voxel_size: tuple[float, ...], n_times: int | None
) -> None:
    lead = () if n_times is None else (n_times,)
    levels = level_shapes((*lead, *shape), voxel_size, "zyx")
    assert levels[0] == ((*lead, *shape), voxel_size, (1,) * (len(lead) + 3))
    assert max(levels[-1].shape[len(lead) :]) <= 256
    for above, level in zip(levels, levels[1:], strict=False):
        assert set(level.factors) <= {1, 2}
        assert 2 in level.factors
        assert level.shape == tuple(-(-n // f) for n, f in zip(above.shape, level.factors, strict=True))
        assert level.factors[: len(lead)] == (1,) * len(lead)
        assert max(above.shape[len(lead) :]) > 256
        spatial = level.factors[len(lead) :]
        halved = [v for v, f in zip(above.voxel_size, spatial, strict=True) if f == 2]
        assert max(halved) < 2 * min(halved)
        assert all(n >= 64 for n, f in zip(level.shape[len(lead) :], spatial, strict=True) if f == 2)


def test_equal_images_have_equal_bytes_wherever_they_lie(tmp_path: Path) -> None:
    for name in ("a", "b"):
        make(tmp_path / name, channel_names=["x", "y"])

    def content(name: str) -> dict[str, bytes]:
        files = [p for p in (tmp_path / name).rglob("*") if p.is_file()]
        return {str(p.relative_to(tmp_path / name)): p.read_bytes() for p in files}

    assert content("a") == content("b")


def test_an_image_is_not_overwritten_unless_told(tmp_path: Path) -> None:
    (level, *_) = make(tmp_path / "im", axes="yx", shape=(8, 8), n_channels=None, chunk=(4, 4), shard=None,
                       voxel_size=(1, 1))  # fmt: skip
    level.write(level.box, np.ones((8, 8), "uint8"))
    with pytest.raises(InputError, match="--overwrite"):
        make(tmp_path / "im")
    assert level.read(level.box).all()
    record = tmp_path / "im" / ".unetflow" / "ledger"
    record.parent.mkdir()
    record.write_text("kept")
    make(tmp_path / "im", overwrite=True)
    assert open_volume(tmp_path / "im").axes == "tczyx"
    assert record.read_text() == "kept"


def test_a_folder_of_other_files_is_never_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="with other files"):
            create_group(tmp_path, overwrite=overwrite)
    with pytest.raises(InputError, match="got the file"):
        create_group(tmp_path / "thesis.tex", overwrite=True)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_axes_out_of_order_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="order t, c, z, y, x, got 'xyz'"):
        make(tmp_path / "im", axes="xyz")


def test_a_shard_must_be_made_of_whole_chunks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="multiple of the chunk"):
        make(tmp_path / "im", shard=(1, 48, 64, 64))


def test_attributes_are_added_beside_those_that_are_there(tmp_path: Path) -> None:
    create_group(tmp_path / "g", {"a": 1, "b": {"c": 2}})
    set_attributes(tmp_path / "g", {"b": 3, "d": [4]})
    assert get_attributes(tmp_path / "g") == {"a": 1, "b": 3, "d": [4]}
