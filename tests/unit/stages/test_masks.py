"""A mask of any resolution says of each voxel, and of each block, whether it is inside."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import unetflow.stages.masks as masks
from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box
from unetflow.storage.volume import Volume, create_array, open_volume


def stored(path: Path, voxels: np.ndarray, voxel_size: tuple[float, ...] | None = None) -> Volume:
    create_array(str(path), axes="yx", shape=voxels.shape, dtype="uint8", chunk=(8, 8), voxel_size=voxel_size,
                 overwrite=True)  # fmt: skip
    zarr.open_array(path)[...] = voxels
    return open_volume(str(path))


def expand(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Put each voxel's middle into the mask, the slow way."""
    pairs = zip(shape, mask.shape, strict=True)
    index = [np.minimum(((np.arange(n) + 0.5) * m / n).astype(int), m - 1) for n, m in pairs]
    return mask[np.ix_(*index)] > 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
@given(
    shape=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    coarse=st.tuples(st.integers(1, 70), st.integers(1, 70)),
    limit=st.sampled_from([0, 10**9]),
    seed=st.integers(0, 99),
)
def test_any_resolution_covers_the_volume(
    tmp_path: Path, shape: tuple[int, int], coarse: tuple[int, int], limit: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    mask = (rng.random(coarse) > 0.9).astype(np.uint8)
    over = masks.lay_over(stored(tmp_path / "mask", mask), stored(tmp_path / "raw", np.zeros(shape)))
    expected = expand(mask, shape)
    assert np.array_equal(over.read(Box.of_shape(shape)), expected)
    domain = Box((shape[0] // 3, 0), shape)
    grid = BlockGrid(Box.of_shape(domain.shape), (7, 9))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "_LOOKED_AT", limit)
        live = over.blocks_inside(grid, domain.start)
    for block in grid:
        there = expected[block.inner.shift(domain.start).slices].any()
        assert live[block.number] or not there, "a block with voxels inside was left out"
    if limit and coarse == shape:
        assert live.sum() == sum(bool(expected[b.inner.shift(domain.start).slices].any()) for b in grid)


def test_voxel_sizes_tell_the_resolution(tmp_path: Path) -> None:
    raw = stored(tmp_path / "raw", np.zeros((10, 10)), (0.5, 0.5))
    mask = np.zeros((4, 4), np.uint8)
    mask[3, 3] = 1
    over = masks.lay_over(stored(tmp_path / "mask", mask, (1.5, 1.5)), raw)  # 3.33 voxels round up to 4
    assert over.ratio == (3.0, 3.0)
    assert np.argwhere(over.read(Box.of_shape((10, 10)))).tolist() == [[9, 9]]


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path: Path) -> None:
    raw = stored(tmp_path / "raw", np.zeros((10, 10)), (0.5, 0.5))
    with pytest.raises(InputError, match="must cover the volume"):
        masks.lay_over(stored(tmp_path / "mask", np.zeros((3, 3)), (0.7, 0.7)), raw)


def test_a_large_empty_mask_gives_no_block_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masks, "_LOOKED_AT", 0)
    mask = np.zeros((64, 64), np.uint8)
    mask[50, 3] = 1
    over = masks.lay_over(stored(tmp_path / "mask", mask), stored(tmp_path / "raw", np.zeros((64, 64))))
    grid = BlockGrid(Box.of_shape((64, 64)), (16, 16))
    assert np.flatnonzero(over.blocks_inside(grid, (0, 0))).tolist() == [12]
