"""The seam score is 1 where nothing shows, and rises with every step at the faces of blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from unetflow.geometry import BlockGrid, Box
from unetflow.numerics.rescale import rescale, source_box
from unetflow.stages.pieces import Pieces
from unetflow.stages.seams import choose_faces, measure_seams
from unetflow.stages.work import Conditions, open_work
from unetflow.storage.volume import create_array


def score(
    folder: Path, field: np.ndarray[Any, Any], block: tuple[int, ...], ratio: tuple[float, ...] = ()
) -> float | None:
    volume = create_array(str(folder / "p"), axes="cyx", n_channels=1, shape=field.shape, dtype="float32", chunk=block)
    volume.write(volume.box, field[None].astype(np.float32))
    with open_work("seams", folder / "work", {}, Conditions()) as work:
        return measure_seams(work, (volume,), Pieces((BlockGrid(volume.box, block),)), (True, True), 0, [ratio])


@pytest.mark.parametrize(("step", "low", "high"), [(0.0, 0.9, 1.1), (0.02, 1.3, 9.0), (0.2, 9.0, 200.0)])
def test_a_step_between_blocks_shows(tmp_path: Path, step: float, low: float, high: float) -> None:
    field = ndimage.gaussian_filter(np.random.default_rng(0).random((256, 256)), 4)
    blocks = np.add.outer(np.arange(256) // 32, np.arange(256) // 32) % 2
    found = score(tmp_path, field + step * blocks, (32, 32))
    assert found is not None
    assert low < found < high


@pytest.mark.parametrize("ratio", [2.0, 3.5])
def test_interpolated_voxels_show_no_seam_for_their_phase(tmp_path: Path, ratio: float) -> None:
    """Of noise on long voxels, jumps between short ones differ by where these lie in the long ones."""
    noise = np.random.default_rng(0).random((1, 140, 140)).astype(np.float32)
    target = Box((0, 0), (252, 252))
    place = source_box(target, [1 / ratio] * 2)
    field = rescale(noise[:, : place.shape[0], : place.shape[1]], place, target, [1 / ratio] * 2)[0]
    for name in ("plain", "known"):
        (tmp_path / name).mkdir()
    plain = score(tmp_path / "plain", field, (28, 28))
    known = score(tmp_path / "known", field, (28, 28), (ratio, ratio))
    assert plain is not None
    assert known is not None
    assert 0.9 < known < 1.1
    assert ratio != 2 or plain > 1.5
    blocks = np.add.outer(np.arange(252) // 28, np.arange(252) // 28) % 2
    (tmp_path / "step").mkdir()
    stepped = score(tmp_path / "step", field + 0.5 * blocks, (28, 28), (ratio, ratio))
    assert stepped is not None
    assert stepped > 1.5


def test_without_faces_there_is_no_score(tmp_path: Path) -> None:
    assert score(tmp_path, np.zeros((20, 20)), (32, 32)) is None


def test_no_more_faces_are_read_than_allowed_and_all_have_both_sides() -> None:
    grid = BlockGrid(Box.of_shape((10**5, 10**5)), (100, 100))
    faces = choose_faces(grid, 1, 3, np.ones(len(grid), bool))
    assert len(faces) == 256
    assert all(block.inner.shape == (100, 4) for block in faces)
    thin = choose_faces(BlockGrid(Box.of_shape((10, 21)), (10, 10)), 1, 0, np.ones(3, bool))
    assert [block.inner.start[1] for block in thin] == [8], "a last block of one voxel has no face to measure"


def test_only_faces_between_blocks_that_are_stored_are_measured() -> None:
    stored = np.array([[0, 1, 1], [1, 0, 1]], bool)
    grid = BlockGrid(Box.of_shape((8, 12)), (4, 4))
    assert [b.inner.start for b in choose_faces(grid, 1, 0, stored.ravel())] == [(0, 6)]
    assert [b.inner.start for b in choose_faces(grid, 0, 0, stored.ravel())] == [(2, 8)]
