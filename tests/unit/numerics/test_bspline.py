"""The finite filter gives the coefficients of the exact one."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from unetflow.numerics.bspline import REACH, coefficients


@given(st.tuples(*[st.integers(1, 30)] * 3), st.tuples(*[st.booleans()] * 3), st.integers(0, 2**32 - 1))
def test_coefficients_are_those_of_scipy(
    shape: tuple[int, int, int], is_moved: tuple[bool, bool, bool], seed: int
) -> None:
    source = np.random.default_rng(seed).integers(0, 256, (2, *shape)).astype(np.uint8)
    expected = source.astype(np.float64)
    for axis, wanted in enumerate(is_moved):
        if wanted and shape[axis] > 1:
            expected = ndimage.spline_filter1d(expected, 3, axis=1 + axis, mode="mirror")
    np.testing.assert_allclose(coefficients(source, is_moved), expected, atol=1e-4 * 255)


def test_a_coefficient_depends_on_nothing_beyond_the_reach() -> None:
    rng = np.random.default_rng(0)
    wide = rng.random((1, 1, 60, 60), np.float32)
    near = wide[:, :, 20 - REACH : 40 + REACH, 20 - REACH : 40 + REACH]
    inner = coefficients(near, (False, True, True))[:, :, REACH:-REACH, REACH:-REACH]
    np.testing.assert_array_equal(coefficients(wide, (False, True, True))[:, :, 20:40, 20:40], inner)
