"""A volume of other voxels than the model's: the network sees its own, the outputs have the volume's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import project
import pytest
import zarr
from project import make_model

from unetflow.errors import InputError
from unetflow.geometry import Box, mirror_indices
from unetflow.nn.checkpoint import load_model
from unetflow.nn.predict import Predictor
from unetflow.numerics.rescale import rescale, rescaled_length, source_box
from unetflow.settings import Settings, make_settings
from unetflow.stages.evaluate import evaluate
from unetflow.stages.figures import plan_figures
from unetflow.stages.resampled import Resampled
from unetflow.stages.segment import segment
from unetflow.stages.segment_plan import plan
from unetflow.stages.tile_runner import Kept, Loaded, TileRunner, hull
from unetflow.stages.tiles import Tiling
from unetflow.stages.verify import verify
from unetflow.storage.chunks import ChunkCache
from unetflow.storage.volume import create_array, open_volume

Array = np.ndarray[Any, Any]


def write(path: Path, voxels: Array, axes: str, size: tuple[float, ...]) -> None:
    lengths = [n for n, a in zip(voxels.shape, axes, strict=True) if a != "c"]
    channels = voxels.shape[axes.index("c")] if "c" in axes else None
    create_array(
        str(path), axes=axes, shape=lengths, n_channels=channels, dtype=voxels.dtype.name,
        chunk=[min(n, 32) for n in lengths], voxel_size=size,
    )  # fmt: skip
    zarr.open_array(path)[...] = voxels


# The oracle


def resampled_whole(array: Array, target: Box, ratio: Any) -> Array:
    """Resample a whole ``(C, ...)`` to a box of the target, from its mirrored surroundings."""
    place = source_box(target, ratio)
    for axis, (a, b) in enumerate(zip(place.start, place.stop, strict=True)):
        array = array.take(mirror_indices(a, b, array.shape[axis + 1]), axis=axis + 1)
    return rescale(array, place, target, ratio)


def expected(predictor: Predictor, raw: Array, ratio: tuple[float, ...]) -> Array:
    """Resample ``(C, *network's axes)``, predict it and what surrounds it in one forward pass, and resample that."""
    spec, shape = predictor.spec, raw.shape[1:]
    back = [1 / r for r in ratio]
    seen_shape = [rescaled_length(n, r) for n, r in zip(shape, ratio, strict=True)]
    seen = resampled_whole(raw, Box.of_shape(seen_shape), ratio)
    made = source_box(Box.of_shape(shape), back)
    first = [a - a % s for a, s in zip(made.start, spec.total_stride, strict=True)]
    kept = [-(-(b - a) // s) * s for a, b, s in zip(first, made.stop, spec.total_stride, strict=True)]
    length, before = spec.tile_input(kept), spec.halo[0]
    for axis, (a, b, n) in enumerate(zip(first, before, length, strict=True)):
        seen = seen.take(mirror_indices(a - b, a - b + n, seen.shape[axis + 1]), axis=axis + 1)
    p = predictor.probabilities((seen - 128) / np.float32(90))
    start = tuple(a - b + m for a, b, m in zip(first, before, spec.margin, strict=True))
    place = Box(start, tuple(a + n for a, n in zip(start, p.shape[1:], strict=True)))
    return np.clip(rescale(p, place, Box.of_shape(shape), back), 0, 1)


# Axes, shape, voxels of the model and of the volume, the network
CASES: list[tuple[str, tuple[int, ...], tuple[float, ...], tuple[float, ...], dict[str, Any]]] = [
    ("yx", (45, 70), (0.2, 0.2), (0.1, 0.1), {}),
    ("czyx", (2, 3, 30, 41), (9.0, 0.2, 0.2), (0.5, 0.3, 0.2), {"in_channels": 2}),
    ("tzyx", (2, 9, 21, 14), (0.5, 0.5, 0.1), (1.0, 0.2, 0.1), {"dims": 3, "depth": 1, "padding": "same"}),
    ("zyx", (40, 33, 30), (0.8, 0.3, 0.3), (0.1, 0.1, 0.1), {"dims": 3, "depth": 1}),
]


@pytest.mark.parametrize(("axes", "shape", "trained", "size", "numbers"), CASES, ids=[c[0] for c in CASES])
@pytest.mark.parametrize("is_cut", [False, True], ids=["planned", "small tiles, a region"])
def test_each_voxel_gets_what_whole_arrays_say(
    tmp_path: Path, axes: str, shape: Any, trained: Any, size: Any, numbers: dict[str, Any], is_cut: bool
) -> None:
    spatial = axes.replace("t", "").replace("c", "")
    predictor = make_model(tmp_path / "model.safetensors", spatial[-len(trained) :], trained, **numbers)
    dims = predictor.spec.dims
    raw = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    raw[..., 12:] //= 1 if not is_cut else 255  # much of it empty: tiles of nothing are computed once
    write(tmp_path / "raw.zarr", raw, axes, size)
    chosen: dict[str, Any] = {"dtype": "float32", "voxel_size": "resample"}
    if is_cut:
        wish = [1] * (len(spatial) - dims) + [16] * dims
        chosen |= {"tile": wish, "shard": wish, "chunk": wish}
    out = tmp_path / "out.zarr"
    volume = open_volume(str(tmp_path / "raw.zarr"))
    region = volume.box
    if is_cut:
        far = [n // 4 for n in volume.shape[-dims:]]
        lead = [0] * (volume.ndim - dims)
        region = region.grow([*lead, *(-n for n in far)], [*lead, *(-n // 2 for n in far)])
    roi = str(region) if is_cut else None
    segment(make_settings({"segment": chosen}), volume.path, model=str(tmp_path), out=str(out), roi=roi)
    output = open_volume(str(out))
    p = output.read(output.box)
    assert output.voxel_size == volume.voxel_size
    assert output.shape == region.shape
    ratio = tuple(a / b for a, b in zip(trained[-dims:], size[-dims:], strict=True))
    voxels = volume.read(volume.box)
    for place in np.ndindex(*volume.shape[: volume.ndim - dims]):
        here = expected(predictor, voxels[(slice(None), *place)], ratio)
        here = here[(slice(None), *region.slices[-dims:])]
        assert here.std() > 1e-3
        assert np.abs(p[(slice(None), *place)] - here).max() <= 2e-5


# Cuts, workers, masks, what is missing


@pytest.fixture(scope="module")
def fine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A volume of half the model's voxels with places that are not stored, a mask, and a model."""
    folder = tmp_path_factory.mktemp("fine")
    make_model(folder / "model.safetensors", "zyx", (0.4, 0.2, 0.2), dims=3, depth=1)
    raw = np.random.default_rng(0).integers(1, 255, (30, 60, 70)).astype(np.uint8)
    write(folder / "raw.zarr", raw, "zyx", (0.2, 0.1, 0.1))
    (folder / "raw.zarr" / "c" / "0" / "1" / "2").unlink()
    (folder / "raw.zarr" / "c" / "0" / "0" / "0").unlink()
    mask = np.ones((15, 30, 35), np.uint8)
    mask[:, 20:, :16] = 0
    write(folder / "mask.zarr", mask, "zyx", (0.4, 0.2, 0.2))
    return folder


def cut(**chosen: Any) -> Settings:
    return make_settings({"segment": {"voxel_size": "resample", "tile": [16, 16, 16], "dtype": "float32", **chosen}})


def voxels_of(out: Path) -> list[bytes]:
    """Return the voxels of every level of every array of an output."""
    stored = sorted(p.parent for p in out.rglob("zarr.json") if (p.parent / "c").exists())
    assert len(stored) >= 2
    return [np.asarray(zarr.open_array(path)[:]).tobytes() for path in stored]


@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_blocks_and_workers_change_no_bit(
    fine: Path, tmp_path: Path, two_workers: Any, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unetflow.stages.layout._BLOCK_VOXELS", {3: 1})  # also a blend has many blocks
    raw, words = str(fine / "raw.zarr"), {"model": str(fine), "mask": str(fine / "mask.zarr")}
    small = cut(mode=mode, overlap=0.5, chunk=[16, 16, 32], shard=[32, 32, 32])
    one = segment(small, raw, out=str(tmp_path / "one.zarr"), **words)
    if mode == "exact":
        two = segment(small, raw, two_workers, out=str(tmp_path / "two.zarr"), **words)
        assert project.tree(tmp_path / "one.zarr") == project.tree(tmp_path / "two.zarr")
        assert two["blocks"] == one["blocks"]
    large = segment(
        cut(mode=mode, overlap=0.5, chunk=[15, 30, 35], shard=[30, 30, 70]), raw, out=str(tmp_path / "large.zarr"),
        **words,
    )  # fmt: skip
    assert large["blocks"] < one["blocks"]
    assert voxels_of(tmp_path / "one.zarr") == voxels_of(tmp_path / "large.zarr")
    output = open_volume(str(tmp_path / "one.zarr"))
    assert (output.shape, output.voxel_size) == ((30, 60, 70), (0.2, 0.1, 0.1))
    assert not output.read(Box((0, 40, 0), (30, 60, 32))).any()  # outside the mask
    assert output.read(output.box).std() > 1e-3


@pytest.mark.parametrize("mode", ["exact", "blend"])
def test_any_box_of_the_outputs_has_the_bits_of_the_whole(fine: Path, mode: Any) -> None:
    """Boxes that cut tiles anywhere, as blocks of large volumes do."""
    predictor = Predictor(load_model(str(fine / "model.safetensors"))[0])
    view = Resampled(open_volume(str(fine / "raw.zarr")), (2.0, 2.0, 2.0))
    tiling = Tiling(predictor.spec, view.volume.box, (16, 16, 16), mode=mode, ratio=view.ratio)

    def predicted(box: Box) -> Array:
        tiles = list(tiling.touching(box))
        outer = hull([tile.source for tile in tiles])
        cache = ChunkCache(10**6)
        runner = TileRunner(predictor, tiling, ([128.0], [90.0]), view.volume.fill_value, Kept(cache, {}))
        p = np.full((3, *box.shape), np.nan, np.float32)
        for part, values in runner.parts(Loaded(tiles, outer, view.read_mirrored(outer, cache=cache), None), box):
            p[(slice(None), *part.relative_to(box).slices)] = values
        return p

    whole = predicted(view.volume.box)
    assert whole.std() > 1e-3
    rng = np.random.default_rng(0)
    for _ in range(6):
        start = tuple(int(rng.integers(0, n)) for n in view.volume.shape)
        ends = zip(start, view.volume.shape, strict=True)
        box = Box(start, tuple(min(n, a + int(rng.integers(1, 24))) for a, n in ends))
        assert predicted(box).tobytes() == whole[(slice(None), *box.slices)].tobytes()


def test_a_run_takes_what_was_planned_and_is_verified(fine: Path, tmp_path: Path) -> None:
    raw, model, out = str(fine / "raw.zarr"), str(fine), str(tmp_path / "out.zarr")
    made = plan(cut(), raw, model=model, out=out)
    figures = plan_figures(made)
    told = made.summary(n_workers=1)
    assert (told["shape"], told["resampled_by"], told["missing_chunks"]) == ([30, 60, 70], [2.0, 2.0, 2.0], 2)
    cost = segment(cut(), raw, model=model, out=out)["cost"]
    assert cost["real"]["work_factor"] == cost["planned"]["work_factor"]
    assert cost["real"]["chunks"] == figures.chunks_fetched
    assert cost["real"]["bytes_read"] == figures.bytes_read
    # As the network sees it there is an eighth of the volume; what it computes for context comes on top.
    assert 1 / 8 < figures.work_factor == told["figures"]["work_factor"]
    checked = verify(out, n_blocks=100)
    assert checked["mismatches"] == checked["damaged"] == []
    assert len(checked["recomputed"]) == len(made.blocks)
    assert dict(zarr.open_group(out).attrs["unetflow"])["resampled_by"] == [2.0, 2.0, 2.0]
    with pytest.raises(InputError, match="resampled_by"):
        segment(cut(voxel_size="tell"), raw, model=model, out=out)


# What it is for


def blobs(shape: tuple[int, int], seed: int) -> tuple[Array, Array]:
    """Draw bright discs by turns large and small, and number the large ones: only their size tells them apart."""
    rng = np.random.default_rng(seed)
    raw, ids = rng.normal(60, 12, shape), np.zeros(shape, np.uint16)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for i, cy in enumerate(range(14, shape[0] - 13, 26)):
        for j, cx in enumerate(range(14, shape[1] - 13, 26)):
            a, b = np.array([cy, cx]) + rng.integers(-2, 3, 2)
            inside = (y - a) ** 2 + (x - b) ** 2 <= (8 if (i + j) % 2 == 0 else 4) ** 2
            raw[inside] += 90
            if (i + j) % 2 == 0:
                ids[inside] = ids.max() + 1
    return raw.clip(0, 255).astype(np.uint8), ids


def test_objects_are_found_in_a_volume_of_half_the_voxels(tmp_path: Path) -> None:
    from unetflow.stages.prepare import prepare
    from unetflow.stages.train import train

    for name, seed in (("train", 0), ("test", 1)):
        raw, ids = blobs((160, 180), seed)
        write(tmp_path / f"{name}.zarr", raw, "yx", (0.5, 0.5))
        write(tmp_path / f"{name}-ids.zarr", ids, "yx", (0.5, 0.5))
    finer = resampled_whole(raw[None], Box.of_shape((320, 360)), (0.5, 0.5))[0]
    write(tmp_path / "finer.zarr", np.rint(finer).astype(np.uint8), "yx", (0.25, 0.25))
    write(tmp_path / "finer-ids.zarr", ids.repeat(2, 0).repeat(2, 1), "yx", (0.25, 0.25))

    def settings(policy: str) -> Settings:
        values: dict[str, Any] = {
            "data": [{"raw": "train.zarr", "labels": "train-ids.zarr", "kind": "instances"}],
            "prepare": {"patches": 16, "patch_shape": [76, 76], "elastic_sigma": 1.0},
            "model": {"dims": 2, "depth": 2, "base_channels": 4, "norm": "batch", "dropout": 0.0},
            "train": {"steps": 60, "batch_size": 2, "optimizer": "adam", "learning_rate": 0.01},
            "segment": {"outputs": ["probabilities", "classes", "instances"], "min_size": 10, "voxel_size": policy},
        }
        return make_settings(values, folder=str(tmp_path))

    prepare(settings("tell"))
    train(settings("tell"))

    def score(name: str, policy: str) -> float:
        out = str(tmp_path / f"{name}-{policy}.zarr")
        segment(settings(policy), str(tmp_path / f"{name}.zarr"), model=str(tmp_path / "run"), out=out)
        return float(evaluate(settings(policy), out, str(tmp_path / f"{name}-ids.zarr"))["ap50"])

    original, taken_as_it_is, resampled = score("test", "tell"), score("finer", "tell"), score("finer", "resample")
    assert original > 0.85
    assert resampled > original - 0.1
    assert taken_as_it_is < resampled - 0.3
