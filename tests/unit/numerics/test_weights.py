"""Weight maps: exact against brute force, and the same however the volume is cut."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from unetflow.geometry import BlockGrid, Box
from unetflow.numerics.weights import (
    border_cut,
    border_halo,
    border_weight,
    class_weights,
    multilabel_weight_map,
    multilabel_weights,
    two_nearest,
    weight_map,
)


class Scene(NamedTuple):
    ids: np.ndarray
    voxel_size: tuple[float, ...]
    planar: tuple[bool, ...]
    w0: float
    sigma: float
    tolerance: float


@st.composite
def scenes(draw: st.DrawFn) -> Scene:
    ndim = draw(st.integers(1, 4))
    shape = draw(hnp.array_shapes(min_dims=ndim, max_dims=ndim, max_side=(150, 20, 9, 5)[ndim - 1]))
    seed = draw(st.integers(0, 2**32 - 1))
    share = draw(st.sampled_from([0.02, 0.2, 0.9]))
    rng = np.random.default_rng(seed)
    ids = (rng.random(shape) < share) * rng.integers(1, 5, shape)
    if draw(st.booleans()):
        for axis, length in enumerate(shape):
            ids = np.repeat(ids, 3, axis).take(np.arange(length), axis)
    sizes = draw(st.tuples(*[st.sampled_from([1.0, 1.3, 2.5, 10.0])] * ndim))
    planar = draw(st.tuples(*[st.booleans()] * (ndim - 1), st.just(False)))
    sigma, tolerance = draw(st.sampled_from([1.0, 2.5, 5.0])), draw(st.sampled_from([1e-5, 1e-2]))
    return Scene(ids, sizes, planar, 10.0, sigma, tolerance)


def brute_distances(ids: np.ndarray, sizes: Sequence[float], planar: Sequence[bool]) -> tuple[np.ndarray, np.ndarray]:
    """One Euclidean distance transform for each object (and plane)."""
    if any(planar):
        axis = list(planar).index(True)
        rest = [s for a, s in enumerate(sizes) if a != axis], [p for a, p in enumerate(planar) if a != axis]
        planes = [brute_distances(plane, *rest) for plane in np.moveaxis(ids, axis, 0)]
        d1, d2 = (np.stack(ds, axis) for ds in zip(*planes, strict=True))
        return d1, d2
    objects = [n for n in np.unique(ids) if n > 0]
    found = [ndimage.distance_transform_edt(ids != n, sampling=sizes) for n in objects]
    nearest = np.sort(np.stack([*found, *[np.full(ids.shape, np.inf)] * 2]), axis=0)
    return nearest[0], nearest[1]


def assert_equal_to_brute_force(scene: Scene) -> np.ndarray:
    ids, sizes, planar, w0, sigma, tolerance = scene
    d1, d2 = brute_distances(ids, sizes, planar)
    expected = w0 * np.exp(-((d1 + d2) ** 2) / (2 * sigma**2))
    # Where the weight is the tolerance itself, rounding decides whether it is dropped.
    is_clear = np.abs(expected / tolerance - 1) > 1e-4
    expected[expected < tolerance] = 0
    found = border_weight(ids, sizes, w0, sigma, tolerance, planar)
    np.testing.assert_allclose(found[is_clear], expected[is_clear], rtol=0, atol=1e-5)
    return found


def assert_equal_in_blocks(scene: Scene, whole: np.ndarray, block_shape: Sequence[int]) -> None:
    ids, sizes, planar, w0, sigma, tolerance = scene
    halo = border_halo(border_cut(w0, sigma, tolerance), sizes, planar)
    volume = Box.of_shape(ids.shape)
    for block in BlockGrid(volume, tuple(block_shape), halo, halo):
        outer = block.outer.intersect(volume)
        part = border_weight(ids[outer.slices], sizes, w0, sigma, tolerance, planar)
        inner = part[block.inner.relative_to(outer).slices]
        np.testing.assert_array_equal(inner, whole[block.inner.slices])


@given(scenes())
def test_the_border_equals_one_distance_transform_an_object(scene: Scene) -> None:
    assert_equal_to_brute_force(scene)


@given(scenes())
def test_distances_equal_brute_force_up_to_the_cut(scene: Scene) -> None:
    cut = 7.3
    found = two_nearest(scene.ids, scene.voxel_size, cut, scene.planar)
    for d, expected in zip(found, brute_distances(scene.ids, scene.voxel_size, scene.planar), strict=True):
        np.testing.assert_allclose(d, np.where(expected <= cut, expected, np.inf), rtol=1e-6)


@given(scenes(), st.data())
def test_weights_made_in_blocks_are_those_of_the_volume_bit_for_bit(scene: Scene, data: st.DataObject) -> None:
    ids, *rest = scene
    whole = border_weight(ids, rest[0], *rest[2:], planar=scene.planar)
    assert_equal_in_blocks(scene, whole, [data.draw(st.integers(1, n)) for n in ids.shape])


@given(scenes())
def test_threads_change_no_bit(scene: Scene) -> None:
    ids, *rest = scene
    alone = border_weight(ids, rest[0], *rest[2:], planar=scene.planar)
    for threads in (2, 3):
        shared = border_weight(ids, rest[0], *rest[2:], planar=scene.planar, threads=threads)
        np.testing.assert_array_equal(shared, alone)


def test_less_than_one_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        border_weight(np.array([[1, 0, 2]]), (1, 1), 10, 5, 1e-5, threads=0)


KINDS = ("of one voxel each", "larger than a block", "touching", "disconnected", "one", "none")


def objects_of(kind: str, shape: tuple[int, ...]) -> np.ndarray:
    """Give objects of one kind; blocks of a third of the shape are smaller than the largest."""
    ids = np.zeros(shape, np.int64)
    rng = np.random.default_rng(5)
    middle = tuple(slice(n // 5, n - n // 5) for n in shape)
    match kind:
        case "of one voxel each":
            ids.flat[rng.choice(ids.size, 30, replace=False)] = np.arange(1, 31)
        case "larger than a block":
            ids[middle] = 7
            ids[tuple(slice(n // 5) for n in shape)] = 3
        case "touching":
            ids[middle] = 2
            ids[(slice(None), *middle[1:])][: shape[0] // 2] = 9
        case "disconnected":
            ids.flat[rng.choice(ids.size, 60, replace=False)] = np.repeat([4, 8, 6], 20)
        case "one":
            ids[middle] = 5
    return ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("voxel_size", [(1.0, 1.0), (1.0, 2.5), (1.0, 1.0, 1.0), (4.0, 1.3, 1.0)])
def test_objects_of_every_kind_are_weighed_exactly_however_cut(kind: str, voxel_size: tuple[float, ...]) -> None:
    # Wider than the run of voxels that listens together, and not a multiple of it.
    shape = (30, 141) if len(voxel_size) == 2 else (9, 10, 71)
    scene = Scene(objects_of(kind, shape), voxel_size, (False,) * len(shape), 10.0, 2.0, 1e-5)
    whole = assert_equal_to_brute_force(scene)
    assert whole.any() == (kind not in ("one", "none"))
    assert_equal_in_blocks(scene, whole, [n // 3 for n in shape])


@pytest.mark.parametrize("dtype", [np.int32, np.int64, np.uint64])
def test_the_whole_weight_map_stays_under_eight_float32_copies(dtype: type[np.integer]) -> None:
    ids = np.random.default_rng(0).integers(0, 3000, (512, 512)).astype(dtype)
    if dtype == np.uint64:
        ids[ids > 0] += np.uint64(2**40)
    options = {"voxel_size": (1, 1), "w0": 10, "sigma": 5, "tolerance": 1e-5}
    target = (ids > 0).astype(np.uint8)
    weight_map(target[:2], ids[:2], [1, 2], **options)  # the compiler's memory is not ours
    tracemalloc.start()
    weight_map(target, ids, [1, 2], **options)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * 4 * ids.size


def test_objects_of_any_integer_dtype_give_one_map() -> None:
    ids = np.random.default_rng(0).integers(0, 4, (20, 20))
    expected = border_weight(ids, (1, 1), 10, 2, 1e-3)
    huge = np.array([0, 2**63 + 7, 2**40, 5], np.uint64)[ids]
    np.testing.assert_array_equal(border_weight(huge, (1, 1), 10, 2, 1e-3), expected)
    np.testing.assert_array_equal(border_weight(ids.astype(np.uint8), (1, 1), 10, 2, 1e-3), expected)
    below_zero = np.where(ids == 0, -4, ids)
    np.testing.assert_array_equal(border_weight(below_zero, (1, 1), 10, 2, 1e-3), expected)


def test_measuring_leaves_the_ids_as_they_were() -> None:
    ids = np.array([[1, 0, 2]], np.int32)
    two_nearest(ids, (1.0, 1.0), 5.0)
    assert ids.tolist() == [[1, 0, 2]]


def test_the_paper_s_border_ends_where_it_falls_below_the_tolerance() -> None:
    cut = border_cut(10, 5, 1e-5)
    assert 10 * np.exp(-(cut**2) / 50) == pytest.approx(1e-5)
    assert border_halo(cut, (4.0, 1.0, 1.0), (True, False, False)) == (0, 27, 27)
    assert border_cut(0, 5, 1e-5) == 0
    with pytest.raises(ValueError, match="above 0"):
        border_cut(10, 5, 0)


def test_one_object_alone_has_no_border() -> None:
    ids = np.pad(np.ones((3, 3), np.int64), 3)
    assert not border_weight(ids, (1, 1), 10, 5, 1e-5).any()
    assert not border_weight(ids, (1, 1), 0, 5, 1e-5).any()


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=5))
def test_class_weights_balance_the_classes_and_are_capped(counts: list[int]) -> None:
    weights = class_weights(counts)
    for n, weight in zip(counts, weights, strict=True):
        assert weight == (pytest.approx(min(1000, sum(counts) / (len(counts) * n))) if n else 0)


def test_multilabel_weights_balance_each_mask_on_its_own() -> None:
    weights = multilabel_weights([10, 0, 100], 100)
    np.testing.assert_allclose(weights, [[100 / 180, 5], [0.5, 0], [0, 0.5]])


def test_the_border_adds_to_the_class_weight_where_asked_and_ignored_voxels_weigh_nothing() -> None:
    ids = np.array([[1, 1, 0, 2, 2, 2]])
    target = (ids > 0).astype(np.uint8)
    ignored = np.array([[False] * 5 + [True]])
    border = border_weight(ids, (1, 1), 10, 5, 1e-5)
    options = {"voxel_size": (1, 1), "w0": 10, "sigma": 5, "tolerance": 1e-5, "ignored": ignored}
    background = weight_map(target, ids, [0.5, 2], **options)
    everywhere = weight_map(target, ids, [0.5, 2], border_where="everywhere", **options)
    base = np.where(target == 1, np.float32(2), np.float32(0.5))
    np.testing.assert_array_equal(background, np.where(ignored, 0, base + border * (target == 0)))
    np.testing.assert_array_equal(everywhere, np.where(ignored, 0, base + border))
    assert background.dtype == np.float32


def test_multilabel_borders_lie_in_the_background_of_each_mask() -> None:
    ids = np.array([[1, 0, 2]])
    masks = np.array([[[1, 0, 0]], [[0, 0, 1]]], np.uint8)
    options = {"voxel_size": (1, 1), "w0": 10, "sigma": 5, "tolerance": 1e-5}
    found = multilabel_weight_map(masks, ids, [[1, 3], [2, 4]], **options)
    border = border_weight(ids, (1, 1), 10, 5, 1e-5)
    np.testing.assert_array_equal(found[0], np.where(masks[0], np.float32(3), 1 + border))
    np.testing.assert_array_equal(found[1], np.where(masks[1], np.float32(4), 2 + border))
