"""Objects by watershed: touching cells part, dim ones stay, and the cut is not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import project
import pytest
import zarr
from scipy import ndimage
from typer.testing import CliRunner

from unetflow.errors import Interrupted
from unetflow.geometry import BlockGrid, Box
from unetflow.numerics.watershed import (
    FLOOD_STEPS,
    flood,
    flood_levels,
    flood_strides,
    foreground_probability,
)
from unetflow.runtime.progress import Silent
from unetflow.settings import Settings
from unetflow.stages.segment import segment
from unetflow.stages.watershed import Flooding, flood_volumes
from unetflow.stages.work import Conditions, open_work

WATERSHED = {"instances": "watershed", "seed_threshold": 0.6, "seed_size": 5}


def cells(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Return smooth probabilities in which likely places lie close together."""
    p = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), (0,) * (len(shape) - 2) + (4, 4))
    return np.asarray((p - p.min()) / (p.max() - p.min()), np.float32)


def find(
    folder: Path,
    p: np.ndarray,
    classes: np.ndarray,
    shard: tuple[int, ...],
    client: Any = None,
    linked: tuple[bool, ...] | None = None,
    voxel_size: tuple[float, ...] | None = None,
    **options: Any,
) -> np.ndarray:
    """Write the probabilities of a soft-max and classes, and flood them."""
    from unetflow.storage.volume import create_array, open_volume

    axes = "zyx"[-p.ndim :]
    stored = np.rint(255 * np.stack([1 - p, p])).astype(np.uint8)
    volumes = []
    for name, data in (("p", stored), ("classes", classes), *((n, None) for n in ("f", "s", "w", "r", "i"))):
        has_channels = name == "p"
        volume = create_array(
            folder / name, axes="c" + axes if has_channels else axes, shape=p.shape, chunk=shard, shard=shard,
            n_channels=2 if has_channels else None, dtype="uint8" if data is not None else "uint32",
            voxel_size=voxel_size or (1.0,) * p.ndim,
        )  # fmt: skip
        if data is not None:
            for block in BlockGrid(volume.box, shard):
                volume.write(block.inner, data[(..., *block.inner.slices)])
        volumes.append(open_volume(folder / name))
    job = Flooding(*volumes, BlockGrid(Box.of_shape(p.shape), shard), linked or (True,) * p.ndim)
    asked = {"seed_threshold": 0.7, "seed_size": 5, "connectivity": "face", "min_size": 0, **options}
    with open_work("segment", folder / "work", {}, Conditions(client)) as work:
        counts = flood_volumes(work, (job,), scratch=folder / "work" / "scratch", **asked)
    found = zarr.open_array(folder / "i")[:]
    assert counts == [found.max()]
    return np.asarray(found)


def whole(
    p: np.ndarray, mask: np.ndarray, linked: tuple[bool, ...], threshold: float, size: int, voxel_size: Any
) -> np.ndarray:
    """Find the same objects in memory, with SciPy and one flood."""
    structure = ndimage.generate_binary_structure(p.ndim, 1)
    for axis in np.flatnonzero(~np.array(linked)):
        np.moveaxis(structure, axis, 0)[[0, 2]] = False
    stored = np.rint(255 * np.stack([1 - p, p])).astype(np.uint8)
    likely = foreground_probability(stored)
    seeds, n = ndimage.label(mask & (likely > threshold), structure)
    seeds[np.isin(seeds, 1 + np.flatnonzero(np.bincount(seeds.ravel())[1:] < size))] = 0
    flooded = flood(
        flood_levels(likely), seeds.astype(np.uint32), mask, linked, strides=flood_strides(voxel_size, p.ndim)
    )
    rest = ndimage.label(mask & (flooded == 0), structure)[0]
    both = np.where(rest > 0, rest + n, flooded)
    result = np.zeros(p.shape, np.uint32)
    for number, label in enumerate(dict.fromkeys(both[both > 0].tolist()), 1):
        result[both == label] = number
    return result


@pytest.mark.parametrize(
    ("shape", "shards", "linked", "voxel_size"),
    [
        ((150, 210), [(150, 210), (40, 56), (64, 192)], (True, True), (1, 1)),
        ((2, 90, 120), [(1, 90, 120), (1, 32, 40)], (False, True, True), (5, 1, 1)),
        ((20, 70, 64), [(20, 70, 64), (12, 40, 24)], (True, True, True), (1, 1, 1)),
        ((30, 70, 64), [(30, 70, 64), (6, 40, 64)], (True, True, True), (9, 1, 1)),
    ],
)
def test_any_cut_gives_the_objects_of_the_whole_volume(
    tmp_path: Path, shape: tuple[int, ...], shards: list[tuple[int, ...]], linked: tuple[bool, ...],
    voxel_size: tuple[float, ...], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    # Blocks no longer than their halo need be: faces everywhere.
    monkeypatch.setattr("unetflow.stages.watershed._HALOS_A_BLOCK", 0)
    p = cells(shape)
    classes = (p > 0.45).astype(np.uint8)
    expected = whole(p, classes > 0, linked, 0.7, 5, voxel_size)
    assert expected.max() > 10
    for number, shard in enumerate(shards):
        found = find(tmp_path / str(number), p, classes, shard, linked=linked, voxel_size=voxel_size)
        assert np.array_equal(found, expected)


def test_two_workers_give_what_a_plain_loop_gives(tmp_path: Path, two_workers: Any) -> None:
    p = cells((150, 210))
    classes = (p > 0.45).astype(np.uint8)
    trees = []
    for name, client in (("one", None), ("two", two_workers)):
        find(tmp_path / name, p, classes, (64, 56), client)
        trees.append(project.tree(tmp_path / name / "i"))
    assert trees[0] == trees[1]


def discs(*places: tuple[int, int, float]) -> np.ndarray:
    """Return soft discs ``(y, x, height)``."""
    y, x = np.mgrid[:80, :140]
    return np.asarray(
        np.max([h * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 350) for cy, cx, h in places], axis=0), np.float32
    )


def test_cells_that_touch_part_and_a_dim_one_is_kept(tmp_path: Path) -> None:
    p = discs((30, 30, 1.0), (30, 60, 1.0), (55, 115, 0.6))
    classes = (p > 0.4).astype(np.uint8)
    assert ndimage.label(classes)[1] == 2
    found = find(tmp_path, p, classes, (32, 32), seed_threshold=0.9, seed_size=30)
    assert np.array_equal(found > 0, classes > 0)
    assert found.max() == 3
    assert (found[30, 30], found[30, 60], found[55, 115]) == (1, 2, 3)
    assert np.array_equal(found[30, 35:44], [1] * 9)
    assert np.array_equal(found[30, 46:56], [2] * 10)


def test_ids_follow_the_first_voxels_whichever_way_an_object_was_found(tmp_path: Path) -> None:
    p = discs((60, 30, 1.0), (20, 100, 0.6))
    found = find(tmp_path, p, (p > 0.4).astype(np.uint8), (32, 32), seed_threshold=0.9)
    assert (found[20, 100], found[60, 30]) == (1, 2)


def test_a_small_seed_is_none_and_a_small_object_is_dropped(tmp_path: Path) -> None:
    p = discs((30, 30, 1.0), (30, 60, 1.0))
    classes = (p > 0.4).astype(np.uint8)
    assert find(tmp_path / "seeds", p, classes, (32, 32), seed_threshold=0.9, seed_size=200).max() == 1
    classes[70:73, 100:103] = 1
    assert find(tmp_path / "all", p, classes, (32, 32), seed_threshold=0.9).max() == 3
    found = find(tmp_path / "large", p, classes, (32, 32), seed_threshold=0.9, min_size=10)
    assert found.max() == 2
    assert not found[70:73, 100:103].any()


def test_corners_join_with_full_connectivity_only(tmp_path: Path) -> None:
    p = np.zeros((64, 64), np.float32)
    p[8:16, 8:16], p[16:24, 16:24] = 1.0, 0.6
    classes = (p > 0).astype(np.uint8)
    assert find(tmp_path / "face", p, classes, (16, 16)).max() == 2
    assert find(tmp_path / "full", p, classes, (16, 16), connectivity="full").max() == 1


def test_a_flood_ends_after_its_steps_and_what_lies_beyond_is_an_object(tmp_path: Path) -> None:
    p = np.full((4, 200), 0.6, np.float32)
    p[:, :10] = 1.0
    found = find(tmp_path, p, np.ones(p.shape, np.uint8), (4, 16))
    assert (found[:, : 10 + FLOOD_STEPS] == 1).all()
    assert (found[:, 10 + FLOOD_STEPS :] == 2).all()


def watershed_settings(folder: Path, **changes: Any) -> Settings:
    return project.settings_in(folder, segment={**WATERSHED, **changes})


def read(out: Path, name: str) -> np.ndarray:
    return np.asarray(zarr.open_array(out / "labels" / name / "0")[:])


def test_segment_floods_what_it_stored_for_any_shard(trained: Path) -> None:
    found = []
    for number, shard in enumerate(([1, 100, 132], [1, 32, 64])):
        out = trained / f"flooded-{number}.zarr"
        settings = watershed_settings(trained, shard=shard, chunk=shard)
        result = segment(settings, str(trained / "raw.zarr"), out=str(out))
        found.append(read(out, "instances"))
        assert result["objects"] == found[-1].max()
        assert not (out / ".unetflow" / "labelling").exists()
    p = 1 - zarr.open_array(trained / "flooded-0.zarr" / "0")[0] / 255
    mask = read(trained / "flooded-0.zarr", "classes") > 0
    expected = whole(p, mask, (False, True, True), 0.6, 5, (0.05, 0.01, 0.01))
    assert expected.max() > ndimage.label(expected > 0, np.ones((3, 3, 3)))[1] > 0
    assert np.array_equal(found[0], expected)
    assert np.array_equal(found[1], expected)


def test_no_object_stands_outside_the_mask(trained: Path) -> None:
    mask = np.zeros(project.SHAPE, np.uint8)
    mask[0, 20:60, 20:90] = 1
    zarr.save_array(trained / "flood-mask.zarr", mask)
    out = trained / "flood-masked.zarr"
    settings = watershed_settings(trained)
    segment(settings, str(trained / "raw.zarr"), out=str(out), mask=str(trained / "flood-mask.zarr"))
    found = read(out, "instances")
    assert found.max() > 0
    assert np.array_equal(found > 0, read(out, "classes") > 0)


class Stop(Silent):
    """Counts the blocks of one start, and asks to stop after some."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.left, self.passes = after, set[str]()

    def start(self, name: str, total: int, done: int = 0) -> None:
        super().start(name, total, done)
        self.passes.add(name)

    def advance(self, n: int = 1) -> None:
        super().advance(n)
        self.left -= n

    def is_asked(self) -> bool:
        return self.left <= 0


def test_a_stopped_watershed_goes_on_with_the_same_command(trained: Path) -> None:
    settings = watershed_settings(trained, shard=[1, 32, 64], chunk=[1, 32, 32])
    once, often = trained / "flood-whole.zarr", trained / "flood-stopped.zarr"
    total = segment(settings, str(trained / "raw.zarr"), out=str(once))["blocks"]
    stopped_in: set[str] = set()
    for _ in range(total):
        stop = Stop(25)
        conditions = Conditions(progress=stop, should_stop=stop.is_asked)
        try:
            result = segment(settings, str(trained / "raw.zarr"), out=str(often), conditions=conditions)
            break
        except Interrupted:
            stopped_in |= stop.passes
    assert {"seed-label", "flood", "rest-label"} <= stopped_in
    assert total - 25 <= result["blocks_skipped"] < total
    assert project.tree(often) == project.tree(once)


def test_seeds_are_part_of_the_fingerprint_of_a_watershed_alone(trained: Path) -> None:
    from unetflow.errors import InputError

    out = str(trained / "seeds.zarr")
    segment(watershed_settings(trained), str(trained / "raw.zarr"), out=out)
    with pytest.raises(InputError, match=r"seed_threshold.*--overwrite"):
        segment(watershed_settings(trained, seed_threshold=0.7), str(trained / "raw.zarr"), out=out)
    out = str(trained / "no-seeds.zarr")
    segment(project.settings_in(trained), str(trained / "raw.zarr"), out=out)
    changed = project.settings_in(trained, segment={"seed_threshold": 0.7})
    assert segment(changed, str(trained / "raw.zarr"), out=out)["blocks_skipped"] > 0


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["segment.outputs=['classes', 'instances']"], "add probabilities"),
        (["segment.instances=basins"], "basins"),
        (["segment.seed_size=0"], "seed_size"),
        (["segment.seed_threshold=2"], "seed_threshold"),
    ],
)
def test_what_cannot_be_flooded_is_refused_before_anything_is_written(
    trained: Path, assignments: list[str], message: str
) -> None:
    from unetflow.cli import app

    out = trained / "refused.zarr"
    command = ["segment", str(trained / "raw.zarr"), "-m", str(trained / "run"), "-o", str(out), "--cluster", "none"]
    asked = ["segment.instances=watershed", "segment.outputs=['probabilities', 'instances']", *assignments]
    result = CliRunner().invoke(app, [*command, *(word for text in asked for word in ("--set", text))])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not out.exists()


def test_seeds_by_distance_part_cells_whose_probabilities_are_flat(tmp_path: Path) -> None:
    from unetflow.numerics.depth import stored_depth

    y, x = np.mgrid[:70, :110]
    disc = [(y - 34) ** 2 + (x - cx) ** 2 < 18**2 for cx in (30, 62)]
    classes = (disc[0] | disc[1]).astype(np.uint8)
    assert ndimage.label(classes)[1] == 1
    depth = stored_depth(classes > 0, (1, 1), (True, True), FLOOD_STEPS)
    found = find(tmp_path, depth / np.float32(255), classes, (32, 32), seed_threshold=12 / FLOOD_STEPS)
    assert found.max() == 2
    assert (found[34, 30], found[34, 62]) == (1, 2)
    assert np.array_equal(found[34, 20:44], [1] * 24)


def test_depths_and_what_they_flood_are_the_same_for_any_shard(trained: Path) -> None:
    found = []
    for number, shard in enumerate(([1, 100, 132], [1, 32, 64])):
        out = trained / f"depth-{number}.zarr"
        changes = {"seeds": "distance", "seed_distance": 3, "outputs": ["classes", "instances"]}
        settings = watershed_settings(trained, shard=shard, chunk=shard, **changes)
        segment(settings, str(trained / "raw.zarr"), out=str(out))
        found.append(read(out, "instances"))
    assert np.array_equal(found[0], found[1])
    mask = read(trained / "depth-0.zarr", "classes") > 0
    assert np.array_equal(found[0] > 0, mask)
    structure = ndimage.generate_binary_structure(3, 1) & np.array([False, True, False])[:, None, None]
    assert found[0].max() > ndimage.label(mask, structure)[1]
