"""Fields are smooth, do not fold, and move image, target and weight together."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from unetflow.geometry import Box
from unetflow.numerics.elastic import (
    SMALLEST_JACOBIAN,
    Field,
    displacement,
    source_box,
    warp_image,
    warp_labels,
    warp_weight,
)

SHAPES = st.one_of(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 14)] * 3))


def jacobian(field: Field, *, factor: float = 1.0) -> np.ndarray:
    """Work out det(I + factor grad u) voxel by voxel, with one SciPy spline an axis."""
    ndim = len(field.shape)
    gradient = np.zeros((*field.shape, ndim, ndim))
    for along in range(ndim):
        values = factor * field.vectors
        for axis, n in enumerate(field.shape):
            knots = np.linspace(0, max(n - 1, 1), values.shape[1 + axis])
            spline = CubicSpline(knots, values, axis=1 + axis, bc_type="natural")
            values = spline(np.arange(n), int(axis == along))
            if n == 1 and axis == along:
                values = np.zeros_like(values)
        gradient[..., along] = np.moveaxis(values, 0, -1)
    return np.linalg.det(np.eye(ndim) + gradient)


@given(SHAPES, st.integers(2, 4), st.floats(0, 15), st.integers(0, 2**32 - 1))
def test_no_field_folds(shape: tuple[int, ...], grid: int, sigma: float, seed: int) -> None:
    field = displacement(seed, shape, grid=grid, sigma=(sigma,) * len(shape))
    assert jacobian(field).min() > SMALLEST_JACOBIAN - 1e-9
    if field.was_scaled:
        # No more than needed: a little less scaling would break the bound.
        assert jacobian(field, factor=1.0001).min() < SMALLEST_JACOBIAN + 1e-9


def test_strong_fields_are_scaled_and_weak_ones_are_not() -> None:
    strong = displacement(1, (40, 40), sigma=(30.0, 30.0))
    weak = displacement(1, (400, 400), sigma=(1.0, 1.0))
    assert strong.was_scaled
    assert 0 < strong.factor < 1
    assert (weak.was_scaled, weak.factor) == (False, 1.0)


@given(SHAPES, st.integers(0, 2**32 - 1))
def test_a_field_is_a_function_of_its_seed(shape: tuple[int, ...], seed: int) -> None:
    sigma = (4.0,) * len(shape)
    a, b = (displacement(np.random.SeedSequence(seed), shape, sigma=sigma) for _ in range(2))
    np.testing.assert_array_equal(a.values(), b.values())
    other = displacement(np.random.SeedSequence(seed + 1), shape, sigma=sigma)
    assert not np.array_equal(a.vectors, other.vectors)


def test_the_drawn_vectors_stand_at_the_corners_with_the_given_deviation() -> None:
    corners = []
    for seed in range(150):
        field = displacement(seed, (90, 60), sigma=(10.0, 2.0))
        np.testing.assert_allclose(field.values(Box((0, 59), (1, 60)))[:, 0, 0], field.vectors[:, 0, -1])
        corners.append(field.vectors[:, 0, 0] / field.factor)
    np.testing.assert_allclose(np.std(corners, axis=0), (10.0, 2.0), rtol=0.2)


@given(SHAPES, st.integers(0, 2**32 - 1), st.data())
def test_a_part_of_the_patch_has_the_displacements_of_the_whole(
    shape: tuple[int, ...], seed: int, data: st.DataObject
) -> None:
    field = displacement(seed, shape, sigma=(3.0,) * len(shape))
    start = tuple(data.draw(st.integers(0, n - 1)) for n in shape)
    box = Box(start, shape)
    np.testing.assert_array_equal(field.values(box), field.values()[(slice(None), *box.slices)])


def test_an_axis_without_deviation_is_not_displaced() -> None:
    field = displacement(3, (5, 30, 30), sigma=(0.0, 4.0, 4.0))
    assert not field.values()[0].any()
    assert field.values()[1:].any()
    box = source_box(field, Box((2, 0, 0), (3, 30, 30)), order=3)
    assert (box.start[0], box.stop[0]) == (2, 3)


@pytest.mark.parametrize("order", [0, 1, 3])
def test_without_displacement_nothing_changes(order: int) -> None:
    rng = np.random.default_rng(0)
    field = displacement(0, (9, 11), sigma=(0.0, 0.0))
    box = source_box(field, order=order)
    source = rng.random((2, *box.shape), np.float32)
    at = field.coordinates(origin=box.start)
    inside = (slice(None), *Box.of_shape((9, 11)).relative_to(box).slices)
    np.testing.assert_allclose(warp_image(source, at, order), source[inside], atol=1e-6)
    labels = (source * 9).astype(np.uint16)
    np.testing.assert_array_equal(warp_labels(labels[0], at), labels[0][inside[1:]])
    np.testing.assert_array_equal(warp_labels(labels, at), labels[inside])
    np.testing.assert_array_equal(warp_weight(source, at), source[inside])


@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3]))
def test_the_source_box_holds_all_that_is_read(shape: tuple[int, ...], seed: int, order: int) -> None:
    field = displacement(seed, shape, sigma=(5.0,) * len(shape))
    box = source_box(field, order=order)
    at = field.coordinates(origin=box.start).reshape(len(shape), -1)
    assert (at.min(axis=1) >= 1).all()
    assert (at.max(axis=1) <= np.array(box.shape) - 2).all()


@pytest.mark.parametrize("order", [1, 3])
def test_a_straight_ramp_tells_where_each_voxel_came_from(order: int) -> None:
    field = displacement(5, (40, 50), sigma=(4.0, 4.0))
    inner = Box((10, 10), (30, 40))
    box = source_box(field, inner, order=order)
    ramps = np.stack(np.meshgrid(*[np.arange(n) for n in box.shape], indexing="ij"))
    found = warp_image(ramps, field.coordinates(inner, box.start), order)
    expected = field.coordinates(inner) - np.reshape(box.start, (2, 1, 1))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_more_context_does_not_change_a_cubic_patch() -> None:
    rng = np.random.default_rng(1)
    field = displacement(2, (30, 30), sigma=(3.0, 3.0))
    box = source_box(field, order=3)
    wide = box.grow((20, 20), (20, 20))
    source = rng.random((1, *wide.shape))
    near = source[(slice(None), *box.relative_to(wide).slices)]
    found = warp_image(near, field.coordinates(origin=box.start), 3)
    np.testing.assert_allclose(found, warp_image(source, field.coordinates(origin=wide.start), 3), atol=1e-6)


@given(st.integers(0, 2**32 - 1))
def test_what_is_ignored_stays_ignored_and_weights_stay_in_range(seed: int) -> None:
    rng = np.random.default_rng(seed)
    field = displacement(rng, (20, 20), sigma=(3.0, 3.0))
    box = source_box(field)
    weight = np.where(rng.random((2, *box.shape)) < 0.3, 0, rng.uniform(1, 5, (2, *box.shape)))
    at = field.coordinates(origin=box.start)
    found = warp_weight(weight, at)
    np.testing.assert_array_equal(found == 0, warp_labels(weight, at) == 0)
    assert found.max() <= 5
    np.testing.assert_array_equal(warp_weight(weight[0], at), found[0])


def test_a_grid_of_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 points"):
        displacement(0, (9, 9), grid=1, sigma=(1.0, 1.0))
