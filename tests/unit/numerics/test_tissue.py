from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetflow.geometry import Box
from unetflow.numerics.tissue import tissue

SHAPES = {2: (90, 110), 3: (20, 50, 60)}
SIZES = {2: (1.0, 1.0), 3: (2.5, 1.0, 1.0)}
WHOLE = {n: tissue(Box.of_shape(SHAPES[n]), SHAPES[n], seed=3, voxel_size=SIZES[n]) for n in (2, 3)}


@given(data=st.data(), n=st.sampled_from([2, 3]))
def test_any_box_equals_that_part_of_the_whole(data: st.DataObject, n: int) -> None:
    start = [data.draw(st.integers(0, length - 1)) for length in SHAPES[n]]
    stop = [data.draw(st.integers(a + 1, length)) for a, length in zip(start, SHAPES[n], strict=True)]
    box = Box(tuple(start), tuple(stop))
    raw, ids = tissue(box, SHAPES[n], seed=3, voxel_size=SIZES[n])
    np.testing.assert_array_equal(raw, WHOLE[n][0][box.slices])
    np.testing.assert_array_equal(ids, WHOLE[n][1][box.slices])


@pytest.mark.parametrize("n", [2, 3])
def test_cells_are_as_large_as_said_and_touch(n: int) -> None:
    raw, ids = WHOLE[n]
    spacing = np.prod(SIZES[n])
    n_cells = len(np.unique(ids)) - 1
    expected = raw.size * spacing / 24.0**n
    assert 0.7 * expected < n_cells < 4 * expected  # cells cut by the border count too
    left, right = ids[..., :-1], ids[..., 1:]
    assert np.count_nonzero((left != right) & (left > 0) & (right > 0)) > 50
    assert 0.02 < np.mean(ids == 0) < 0.35


@pytest.mark.parametrize("n", [2, 3])
def test_membranes_between_touching_cells_are_darker_than_cells(n: int) -> None:
    raw, ids = WHOLE[n]
    left, right = ids[..., :-1], ids[..., 1:]
    is_seam = (left != right) & (left > 0) & (right > 0)
    assert raw[..., :-1][is_seam].mean() < raw[..., :-1][(ids > 0)[..., :-1] & ~is_seam].mean() - 50


def test_another_seed_is_another_tissue_and_the_same_seed_the_same() -> None:
    box, shape = Box.of_shape((32, 32)), (32, 32)
    one, again, other = (tissue(box, shape, seed=seed)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert np.mean(one != other) > 0.5


def test_noise_of_neighbours_does_not_depend_on_each_other() -> None:
    shape = (128, 128)
    noisy = tissue(Box.of_shape(shape), shape, seed=5)[0].astype(float)
    clean = tissue(Box.of_shape(shape), shape, seed=5, noise=0)[0].astype(float)
    noise = noisy - clean
    assert abs(noise.mean()) < 0.5
    assert 6 < noise.std() < 10
    for axis in (0, 1):
        a, b = np.delete(noise, 0, axis), np.delete(noise, -1, axis)
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((4,), {}, "axes yx or zyx"),
        ((64, 64), {"cell_size": 2.0}, "at least 8"),
        ((10**6, 10**6, 10**6), {"cell_size": 8.0}, "32 bits"),
    ],
)
def test_what_cannot_be_made_is_refused(shape: tuple[int, ...], options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tissue(Box.of_shape((1,) * len(shape)), shape, seed=0, **options)
