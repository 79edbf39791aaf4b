"""A resampled view has the same bits however it is read, and voxels of other size are told, resampled or refused."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unetflow.errors import InputError
from unetflow.geometry import Box
from unetflow.stages import resampled
from unetflow.stages.resampled import Resampled, voxel_ratio
from unetflow.storage.chunks import ChunkCache
from unetflow.storage.volume import Volume, create_array, open_volume

_NUMBER = itertools.count()


def stored(folder: Path, voxels: np.ndarray, axes: str, **options: Any) -> Volume:
    path = str(folder / f"{next(_NUMBER)}.zarr")
    lengths = [n for n, a in zip(voxels.shape, axes, strict=True) if a != "c"]
    create_array(
        path, axes=axes, shape=lengths, dtype=voxels.dtype.name, chunk=[min(n, 8) for n in lengths],
        **{"n_channels": voxels.shape[axes.index("c")] if "c" in axes else None, **options},
    )  # fmt: skip
    zarr.open_array(path)[...] = voxels
    return open_volume(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(data=st.data())
def test_any_box_has_the_bits_of_the_whole_view_mirrored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    axes = data.draw(st.sampled_from(["yx", "cyx", "zyx", "zcyx"]))
    lengths = [data.draw(st.integers(1, 25)) if a != "c" else 2 for a in axes]
    voxels = np.random.default_rng(data.draw(st.integers(0, 9))).integers(0, 255, lengths, np.uint8)
    volume = stored(tmp_path, voxels, axes)
    ratio = tuple(data.draw(st.sampled_from([1.0, 2.0, 0.5, 2.7, 0.3])) for _ in volume.shape)
    view = Resampled(volume, ratio)
    monkeypatch.setattr(resampled, "SLAB_VOXELS", 2**24)
    whole = view.read_mirrored(Box.of_shape(view.shape))
    rim = 30
    mirrored = np.pad(whole, [(0, 0)] + [(rim, rim)] * volume.ndim, mode="reflect")
    start = tuple(data.draw(st.integers(-rim, n + rim - 1)) for n in view.shape)
    stop = tuple(data.draw(st.integers(a + 1, n + rim)) for a, n in zip(start, view.shape, strict=True))
    monkeypatch.setattr(resampled, "SLAB_VOXELS", data.draw(st.sampled_from([1, 100, 2**24])))
    cache = data.draw(st.sampled_from([None, ChunkCache(0), ChunkCache(10**6)]))
    found = view.read_mirrored(Box(start, stop), cache=cache)
    expected = mirrored[(slice(None), *(slice(a + rim, b + rim) for a, b in zip(start, stop, strict=True)))]
    assert (found.dtype, found.shape) == (np.dtype(view.dtype), expected.shape)
    assert found.tobytes() == expected.tobytes()


def test_a_box_reads_only_what_it_is_made_of_and_little_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = stored(tmp_path, np.ones((64, 64, 64), np.uint8), "zyx")
    sizes = []
    plain = Volume.read_mirrored

    def watched(self: Volume, box: Box, *rest: Any, **more: Any) -> Any:
        sizes.append(box.size)
        return plain(self, box, *rest, **more)

    monkeypatch.setattr(Volume, "read_mirrored", watched)
    cache = ChunkCache(10**6)
    view = Resampled(volume, (2.0, 2.0, 2.0))
    assert view.shape == (32, 32, 32)
    view.read_mirrored(Box((4, 4, 4), (8, 8, 8)), cache=cache)
    assert cache.take_counts()["chunks"] == 1
    assert sizes == [8**3]
    monkeypatch.setattr(resampled, "SLAB_VOXELS", 2**12)
    sizes.clear()
    view.read_mirrored(Box.of_shape(view.shape))
    assert sum(sizes) == 64**3
    assert max(sizes) <= 2**12


def test_what_is_fill_value_everywhere_stays_so(tmp_path: Path) -> None:
    path = str(tmp_path / "empty.zarr")
    create_array(path, axes="zyx", shape=(20, 20, 20), dtype="float32", chunk=(8, 8, 8), fill_value=0.1)
    view = Resampled(open_volume(path), (1.7, 0.6, 3.0))
    assert (view.read_mirrored(Box((-9, -9, -9), (9, 9, 9))) == view.volume.fill_value).all()


# What is done about voxels of other size


def volume_of(folder: Path, size: Any, unit: str | None = "micrometer", axes: str = "zyx") -> Volume:
    return stored(folder, np.zeros((4,) * len(axes), np.uint8), axes, voxel_size=size, unit=unit)


@pytest.mark.parametrize(
    ("facts", "size", "unit", "dims", "expected"),
    [
        ({"voxel_size": [0.5, 0.1, 0.1]}, (0.25, 0.1, 0.2), "micrometer", 3, (2.0, 1.0, 0.5)),
        ({"voxel_size": [0.5, 0.1, 0.1]}, (0.25, 0.1, 0.2), "micrometer", 2, (1.0, 1.0, 0.5)),  # z is not seen
        ({"voxel_size": [0.1, 0.1]}, (9.0, 0.2, 0.2), "micrometer", 2, (1.0, 0.5, 0.5)),
        ({"voxel_size": [0.5, 0.1, 0.1]}, (5.0, 0.1, 0.1), "micrometer", 2, ()),
        ({"voxel_size": [0.5, 0.1, 0.1]}, (0.49, 0.103, 0.1), "micrometer", 3, ()),  # within a twentieth
        ({"voxel_size": [0.3, 0.3, 0.1]}, (0.1, 0.3, 0.103), "micrometer", 3, (3.0, 1.0, 1.0)),
        ({"voxel_size": [0.5, 0.1, 0.1]}, (250.0, 100.0, 100.0), "nanometer", 3, (2.0, 1.0, 1.0)),
        ({"voxel_size": [500, 100, 100], "unit": "nanometer"}, (0.25, 0.1, 0.1), "micrometer", 3, (2.0, 1.0, 1.0)),
        ({"voxel_size": [1, 1, 1], "unit": "micrometer"}, (0.5, 1.0, 1.0), None, 3, (2.0, 1.0, 1.0)),
    ],
)  # fmt: skip
def test_ratios_are_those_of_the_lengths_along_the_networks_axes(
    tmp_path: Path, facts: dict[str, Any], size: Any, unit: str | None, dims: int, expected: tuple[float, ...]
) -> None:
    assert voxel_ratio("resample", volume_of(tmp_path, size, unit), facts, dims) == expected


@pytest.mark.parametrize(
    ("facts", "size", "unit", "parts"),
    [
        ({"voxel_size": [0.5, 0.1, 0.1]}, (0.5, 0.1, 0.01), "micrometer", ["(1, 1, 10) times", "up to 8"]),
        ({"voxel_size": [0.5, 0.1, 0.1]}, (0.5, 0.1, 0.81), "micrometer", ["0.123457", "mend the unit"]),
        ({"voxel_size": [0.5, 0.1, 0.1]}, (1.0, 1.0, 1.0), None, ["--voxel-size", ".zarr has voxels of untold size"]),
        ({"voxel_size": [0.5, 0.1, 0.1]}, (3.0, 1.0, 1.0), "pixel", ["untold size"]),
        ({"voxel_size": [1, 1, 1]}, (0.5, 0.1, 0.1), "micrometer", ["model was trained on voxels of untold size"]),
        ({}, (0.5, 0.1, 0.1), "micrometer", ["model was trained on voxels of untold size"]),
    ],
)
def test_what_cannot_be_resampled_is_refused_with_the_cure(
    tmp_path: Path, facts: dict[str, Any], size: Any, unit: str | None, parts: list[str]
) -> None:
    with pytest.raises(InputError) as refusal:
        voxel_ratio("resample", volume_of(tmp_path, size, unit), facts, 3)
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_other_voxels_are_told_with_the_option_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    facts = {"voxel_size": [0.5, 0.1, 0.1]}
    other, untold = volume_of(tmp_path, (0.5, 0.2, 0.2)), volume_of(tmp_path, (1.0, 1.0, 1.0), None)
    assert voxel_ratio("tell", other, facts, 3) == ()
    assert 'segment.voxel_size = "resample"' in caplog.text
    assert "(0.5, 0.2, 0.2)" in caplog.text
    with pytest.raises(InputError, match=r"\(0.5, 0.1, 0.1\), got \(0.5, 0.2, 0.2\)"):
        voxel_ratio("refuse", other, facts, 3)
    caplog.clear()
    assert voxel_ratio("tell", untold, facts, 3) == voxel_ratio("refuse", untold, facts, 3) == ()
    assert not caplog.text
