"""The factor against folding; that it is largest and enough is tested with the fields, in test_elastic."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unetflow.numerics import folding
from unetflow.numerics.elastic import Field

SHAPES = st.one_of(st.tuples(*[st.integers(1, 40)] * 2), st.tuples(*[st.integers(1, 14)] * 3))


@given(SHAPES, st.integers(2, 4), st.floats(0, 3), st.integers(0, 2**32 - 1))
def test_no_jacobian_is_smaller_than_it_can_be(shape: tuple[int, ...], grid: int, sigma: float, seed: int) -> None:
    ndim = len(shape)
    vectors = sigma * np.random.default_rng(seed).standard_normal((ndim, *(grid,) * ndim))
    fine = Field(vectors, shape, 1.0)
    lowest = folding.smallest_possible(vectors, shape)
    # Differences of neighbours are means of slopes between them, which the bounds hold for as well.
    steps = [np.diff(fine.values(), axis=1 + axis) for axis in range(ndim)]
    cut = tuple(slice(0, n - 1) if n > 1 else slice(None) for n in shape)
    slopes = [
        np.zeros((ndim, *shape))[:, *cut] if n == 1 else step[:, *[slice(0, max(1, m - 1)) for m in shape]]
        for n, step in zip(shape, steps, strict=True)
    ]
    jacobian = np.moveaxis(np.stack(slopes, axis=1), (0, 1), (-2, -1)) + np.eye(ndim)
    assert np.linalg.det(jacobian).min() >= lowest - 1e-9


def test_where_nothing_can_fold_no_voxel_is_asked() -> None:
    rng = np.random.default_rng(1)
    calm, wild = rng.standard_normal((2, 2, 3, 3)) * np.reshape([3, 60], (2, 1, 1, 1))
    assert folding.smallest_possible(calm, (300, 300)) > folding.SMALLEST_JACOBIAN
    assert folding.largest_factor(calm, (300, 300)) == 1
    assert folding.smallest_possible(wild, (300, 300)) == -np.inf
    assert folding.largest_factor(wild, (300, 300)) < 1
