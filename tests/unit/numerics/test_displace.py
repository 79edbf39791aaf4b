"""Image, target and weight are moved together, as SciPy would move each of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from unetflow.geometry import Box
from unetflow.numerics.displace import warp_image, warp_labels, warp_truth
from unetflow.numerics.elastic import displacement, source_box

SHAPES = st.one_of(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 14)] * 3))


@pytest.mark.parametrize("order", [0, 1, 3])
def test_without_displacement_nothing_changes(order: int) -> None:
    rng = np.random.default_rng(0)
    field = displacement(0, (9, 11), sigma=(0.0, 0.0))
    box = source_box(field, order=order)
    source = rng.random((2, *box.shape), np.float32)
    inside = (slice(None), *Box.of_shape((9, 11)).relative_to(box).slices)
    np.testing.assert_allclose(warp_image(source, box, field, order=order), source[inside], atol=1e-6)
    labels = (source * 9).astype(np.uint16)
    np.testing.assert_array_equal(warp_labels(labels[0], box, field), labels[0][inside[1:]])
    np.testing.assert_array_equal(warp_labels(labels, box, field), labels[inside])
    target, weight = warp_truth(labels.astype(np.uint8), source, box, field)
    np.testing.assert_array_equal(target, labels[inside])
    np.testing.assert_array_equal(weight, source[inside])


@pytest.mark.parametrize("order", [1, 3])
def test_a_straight_ramp_tells_where_each_voxel_came_from(order: int) -> None:
    field = displacement(5, (40, 50), sigma=(4.0, 4.0))
    inner = Box((10, 10), (30, 40))
    box = source_box(field, inner, order=order)
    ramps = np.stack(np.meshgrid(*[np.arange(n) for n in box.shape], indexing="ij"))
    found = warp_image(ramps, box, field, inner, order=order)
    expected = field.coordinates(inner) - np.reshape(box.start, (2, 1, 1))
    np.testing.assert_allclose(found, expected, atol=1e-3)


@given(
    SHAPES,
    st.integers(0, 2**32 - 1),
    st.sampled_from([1, 3]),
    st.sampled_from(["uint8", "uint16", "int32", "float32", "float64"]),
)
def test_images_are_those_of_scipy(shape: tuple[int, ...], seed: int, order: int, dtype: str) -> None:
    rng = np.random.default_rng(seed)
    field = displacement(rng, shape, sigma=(4.0,) * len(shape))
    box = source_box(field, order=order)
    source = rng.uniform(0, 250, (2, *box.shape)).astype(dtype)
    at = field.coordinates(origin=box.start)
    expected = [ndimage.map_coordinates(c.astype(np.float64), at, order=order, mode="mirror") for c in source]
    np.testing.assert_allclose(warp_image(source, box, field, order=order), expected, atol=1e-4 * 250)


@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3]))
def test_what_a_small_source_lacks_is_mirrored(shape: tuple[int, ...], seed: int, order: int) -> None:
    rng = np.random.default_rng(seed)
    field = displacement(rng, shape, sigma=(9.0,) * len(shape))
    whole = Box.of_shape(shape)
    source = rng.random((1, *shape), np.float32)
    # The nearest voxel is not mirrored but the last one there is.
    mode = "mirror" if order else "nearest"
    expected = ndimage.map_coordinates(source[0].astype(np.float64), field.coordinates(), order=order, mode=mode)
    np.testing.assert_allclose(warp_image(source, whole, field, order=order)[0], expected, atol=1e-4)


@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3]), st.data())
def test_only_the_source_box_is_needed(shape: tuple[int, ...], seed: int, order: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    field = displacement(rng, shape, sigma=(4.0,) * len(shape))
    part = Box(tuple(data.draw(st.integers(0, n - 1)) for n in shape), shape)
    box = source_box(field, part, order=order)
    wide = box.grow(*[[data.draw(st.integers(0, 15)) for _ in shape] for _ in range(2)])
    source = rng.uniform(0, 60000, (1, *wide.shape)).astype(np.uint16)
    inside = (slice(None), *box.relative_to(wide).slices)
    found = warp_image(source[inside], box, field, part, order=order)
    np.testing.assert_array_equal(found, warp_image(source, wide, field, part, order=order))
    if order == 1:
        target, weight = (source % 3).astype(np.uint8), source.astype(np.float32)
        moved = warp_truth(target[inside], weight[inside], box, field, part)
        for a, b in zip(moved, warp_truth(target, weight, wide, field, part), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("shape", [(60, 70), (20, 24, 28)])
def test_one_field_moves_image_target_and_weight(shape: tuple[int, ...]) -> None:
    field = displacement(4, shape, sigma=(5.0,) * len(shape))
    box = source_box(field, order=3)
    # A ball with a soft surface: its target is where the image is above one half.
    middle = np.reshape([n / 2 for n in shape], (-1, *(1,) * len(shape)))
    at = np.stack(np.meshgrid(*[np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True)], indexing="ij"))
    ball = 1 / (1 + np.exp(np.sqrt(((at - middle) ** 2).sum(0)) - min(shape) / 4))
    target, weight = (ball > 0.5).astype(np.uint8), 1 + ball.astype(np.float32)
    moved_target, moved_weight = warp_truth(target, weight, box, field)
    for order in (1, 3):
        moved = warp_image(ball[None], box, field, order=order)[0]
        is_clear = np.abs(moved - 0.5) > 0.3  # half a voxel of the surface is worth 0.2
        assert is_clear.mean() > 0.5
        np.testing.assert_array_equal((moved > 0.5)[is_clear], moved_target[is_clear])
        np.testing.assert_allclose(1 + moved, moved_weight, atol=0.05)


@given(SHAPES, st.integers(0, 2**32 - 1))
def test_truth_is_the_nearest_target_and_the_mean_weight(shape: tuple[int, ...], seed: int) -> None:
    rng = np.random.default_rng(seed)
    field = displacement(rng, shape, sigma=(4.0,) * len(shape))
    box = source_box(field)
    target = rng.integers(0, 3, box.shape).astype(np.uint8)
    weight = np.where(rng.random(box.shape) < 0.3, 0, rng.uniform(1, 5, box.shape)).astype(np.float32)
    at = field.coordinates(origin=box.start)
    nearest = tuple(np.floor(at + 0.5).astype(int))
    mean = ndimage.map_coordinates(weight.astype(np.float64), at, order=1, mode="mirror")
    mean[weight[nearest] == 0] = 0
    found = warp_truth(target, weight, box, field)
    np.testing.assert_array_equal(found[0], target[nearest])
    np.testing.assert_array_equal(found[0], warp_labels(target, box, field))
    np.testing.assert_allclose(found[1], mean, atol=1e-4)
    # No weight below its class, but for what is ignored.
    class_weights = np.array([1.5, 3.0, 0.5])
    floored = warp_truth(target, weight, box, field, class_weights=class_weights)[1]
    expected = np.where(found[1] == 0, 0, np.maximum(found[1], class_weights[found[0]]))
    np.testing.assert_array_equal(floored, expected.astype(np.float32))


@given(st.integers(0, 2**32 - 1))
def test_what_is_ignored_stays_ignored_and_weights_stay_in_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    field = displacement(rng, (20, 20), sigma=(3.0, 3.0))
    box = source_box(field)
    target = rng.integers(0, 2, (2, *box.shape)).astype(np.uint8)
    weight = np.where(rng.random((2, *box.shape)) < 0.3, 0, rng.uniform(1, 5, (2, *box.shape))).astype(np.float32)
    table = [[1.0, 2.0], [3.0, 4.0]]
    moved, found = warp_truth(target, weight, box, field, class_weights=table)
    np.testing.assert_array_equal(found == 0, warp_labels(weight, box, field) == 0)
    assert found.max() <= 5
    for k in range(2):
        least = np.asarray(table[k])[moved[k]]
        assert (found[k] >= least)[found[k] > 0].all()
        alone = warp_truth(target[k], weight[k], box, field, class_weights=table[k])
        np.testing.assert_array_equal(alone, (moved[k], found[k]))


def test_a_flat_weight_map_stays_as_it_is() -> None:
    field = displacement(8, (30, 30), sigma=(4.0, 4.0))
    box = source_box(field)
    weight = np.full(box.shape, np.float32(0.7351))
    found = warp_truth(np.ones(box.shape, np.uint8), weight, box, field, class_weights=[0.1, 0.7351])
    np.testing.assert_array_equal(found[1], np.float32(0.7351))


def test_whole_numbers_are_rounded_and_keep_within_their_range() -> None:
    rng = np.random.default_rng(3)
    field = displacement(rng, (40, 40), sigma=(4.0, 4.0))
    box = source_box(field, order=3)
    # Cubic splines overshoot at such edges.
    source = np.where(rng.random((1, *box.shape)) < 0.5, 0, 255).astype(np.uint8)
    exact = warp_image(source, box, field, order=3)
    assert exact.min() < -1
    assert exact.max() > 256
    rounded = warp_image(source, box, field, order=3, dtype=np.uint8)
    assert rounded.dtype == np.uint8
    np.testing.assert_array_equal(rounded, np.clip(np.rint(exact), 0, 255))
    largest = np.full((1, *box.shape), np.iinfo(np.uint32).max)
    assert warp_image(largest, box, field, dtype=np.uint32).min() > 2**32 - 2**9


def test_arrays_of_any_layout_are_read() -> None:
    rng = np.random.default_rng(6)
    field = displacement(rng, (20, 30), sigma=(4.0, 4.0))
    box = source_box(field, order=3)
    source = rng.random((1, *box.shape), np.float32)
    turned = np.asfortranarray(source)
    locked = source.copy()
    locked.flags.writeable = False
    for order in (0, 1, 3):
        expected = warp_image(source, box, field, order=order)
        for other in (turned, locked, source.astype(">f4")):
            np.testing.assert_array_equal(warp_image(other, box, field, order=order), expected)
