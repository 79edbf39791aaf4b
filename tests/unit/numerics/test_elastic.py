"""Fields are smooth and do not fold, and tell what is read."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicSpline

from unetflow.geometry import Box
from unetflow.numerics.elastic import SMALLEST_JACOBIAN, Field, displacement, source_box

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


def determinant(m: np.ndarray) -> np.ndarray:
    if len(m) == 1:
        return m[0, 0]
    minors = [np.delete(m[1:], k, axis=1) for k in range(len(m))]
    return sum((-1) ** k * m[0, k] * determinant(minor) for k, minor in enumerate(minors))


@pytest.mark.parametrize(("shape", "n_seeds"), [((64, 64, 64), 5), ((116, 116, 40), 2), ((300, 200), 5)])
def test_neighbours_keep_their_distance_and_side_in_every_patch(shape: tuple[int, ...], n_seeds: int) -> None:
    for seed in range(n_seeds):
        field = displacement(seed, shape, sigma=(10.0,) * len(shape))
        slopes = np.stack([np.stack(np.gradient(along, edge_order=2)) for along in field.values()])
        cells = determinant(slopes + np.eye(len(shape)).reshape(*[len(shape)] * 2, *[1] * len(shape)))
        # Differences of neighbours are slopes but for the spline's curvature, which is small here.
        assert cells.min() > SMALLEST_JACOBIAN - 0.01
        if field.was_scaled:
            assert cells.min() < SMALLEST_JACOBIAN + 0.01


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


@given(SHAPES, st.integers(0, 2**32 - 1), st.sampled_from([0, 1, 3]))
def test_the_source_box_holds_all_that_is_read(shape: tuple[int, ...], seed: int, order: int) -> None:
    field = displacement(seed, shape, sigma=(5.0,) * len(shape))
    box = source_box(field, order=order)
    at = field.coordinates(origin=box.start).reshape(len(shape), -1)
    assert (at.min(axis=1) >= 1).all()
    assert (at.max(axis=1) <= np.array(box.shape) - 2).all()


def test_a_grid_of_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 points"):
        displacement(0, (9, 9), grid=1, sigma=(1.0, 1.0))
