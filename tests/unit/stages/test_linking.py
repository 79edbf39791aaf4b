"""Objects of planes that are linked blockwise are those that plain loops over the whole stack link."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from whole_labels import whole_labels

from unetflow.geometry import BlockGrid, Box, Shape
from unetflow.numerics.overlap import chain
from unetflow.stages.linking import Linking, link_axis, link_planes
from unetflow.stages.work import Conditions, open_work


def store(path: Path, data: np.ndarray, block: Shape, *, fill: bool) -> Any:
    from unetflow.storage.volume import create_array

    axes = "tzyx"[-data.ndim :]
    volume = create_array(path, axes=axes, shape=data.shape, chunk=block, dtype="uint64" if fill else "uint32")
    for piece in BlockGrid(volume.box, block) if fill else ():
        volume.write(piece.inner, data[piece.inner.slices])
    return volume


def link(folder: Path, planar: np.ndarray, block: Shape, *, iou: float = 0.5, min_size: int = 0) -> np.ndarray:
    """Link the objects of planes block by block."""
    folder.mkdir(exist_ok=True)
    volumes = [store(folder / name, planar, block, fill=name == "planar") for name in ("planar", "ids")]
    job = Linking(*volumes, BlockGrid(Box.of_shape(planar.shape), block), link_axis("tzyx"[-planar.ndim :]))
    with open_work("segment", folder / "work", {}, Conditions()) as work:
        n = int(planar.max(initial=0))
        counts = link_planes(work, (job,), [n], iou=iou, min_size=min_size, scratch=folder / "scratch")
    found = np.asarray(zarr.open_array(folder / "ids")[:])
    assert counts == [found.max()]
    return found


def whole_links(planar: np.ndarray, iou: float, min_size: int) -> np.ndarray:
    """Link the objects of planes by the definition, pair by pair, with the whole stack in memory."""
    stacks = planar if planar.ndim == 4 else planar[None]
    parent = {int(i): int(i) for i in np.unique(planar) if i}
    for stack in stacks:
        for here, there in zip(stack, stack[1:], strict=False):
            value = {}
            for a in np.unique(here[here > 0]).tolist():
                for b in np.unique(there[(here == a) & (there > 0)]).tolist():
                    value[a, b] = ((here == a) & (there == b)).sum() / ((here == a) | (there == b)).sum()
            near = {pair: v for pair, v in value.items() if v >= iou}
            for a, b in near:
                best_b = min((-v, y) for (x, y), v in near.items() if x == a)[1]
                best_a = min((-v, x) for (x, y), v in near.items() if y == b)[1]
                if (best_a, best_b) == (a, b):
                    parent[b] = parent[a]
    joined = np.zeros(planar.shape, np.int64)
    for i, root in parent.items():
        joined[planar == i] = root
    result, n = np.zeros(planar.shape, np.uint32), 0
    for root in dict.fromkeys(joined[joined > 0].tolist()):
        if (joined == root).sum() >= min_size:
            n += 1
            result[joined == root] = n
    return result


def test_any_cut_links_what_plain_loops_over_the_whole_stack_link(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ranges of eight ids: chains and partners lie in others all the time.
    for name in ("tables._TABLE_CHUNK", "tables.BUCKET", "gathering.BUCKET", "linking.BUCKET"):
        monkeypatch.setattr(f"unetflow.stages.{name}", 8)

    @settings(max_examples=5)
    @given(
        st.sampled_from([(5, 7, 8), (2, 3, 6, 7)]), st.integers(0, 2**32 - 1),
        st.sampled_from([0.1, 0.3, 0.5, 0.8]), st.sampled_from([0, 6]), st.data(),
    )  # fmt: skip
    def check(shape: Shape, seed: int, iou: float, min_size: int, data: st.DataObject) -> None:
        rng = np.random.default_rng(seed)
        # Neighbouring planes are alike, but for some voxels.
        mask = np.repeat(rng.random(shape[:-3] + (1,) + shape[-2:]) < 0.6, shape[-3], axis=-3)
        mask ^= rng.random(shape) < 0.12
        apart = (False,) * (len(shape) - 2) + (True, True)
        planar = whole_labels(mask, apart, "face", 0)
        block = tuple(data.draw(st.integers(max(1, n // 2), n)) for n in shape)
        with tempfile.TemporaryDirectory() as folder:
            found = link(Path(folder), planar, block, iou=iou, min_size=min_size)
        np.testing.assert_array_equal(found, whole_links(planar, iou, min_size))

    check()


def two_cells(n_planes: int = 6) -> np.ndarray:
    """Return the objects of planes of two cells: the lower ends where the upper begins, and they touch a little."""
    mask = np.zeros((n_planes, 20, 30), bool)
    mask[:3, 3:13, 3:13] = True
    mask[3:, 8:18, 9:21] = True
    return whole_labels(mask, (False, True, True), "face", 0)


def test_two_cells_that_touch_over_z_stay_two(tmp_path: Path) -> None:
    planar = two_cells()
    assert whole_labels(planar > 0, (True, True, True), "face", 0).max() == 1
    found = link(tmp_path, planar, (2, 11, 13))
    assert [np.unique(plane).tolist() for plane in found] == [[0, 1]] * 3 + [[0, 2]] * 3


def test_a_pair_on_the_threshold_is_linked_and_just_above_it_is_not(tmp_path: Path) -> None:
    planar = np.zeros((2, 1, 8), np.uint64)
    planar[0, 0, :4], planar[1, 0, :2] = 1, 2
    assert link(tmp_path / "on", planar, (1, 1, 8), iou=0.5).max() == 1
    assert link(tmp_path / "above", planar, (1, 1, 8), iou=0.5001).max() == 2


def test_of_two_equal_halves_the_one_with_the_lower_id_goes_on(tmp_path: Path) -> None:
    planar = np.array([[[1, 1, 1, 1]], [[2, 2, 3, 3]]], np.uint64)
    assert link(tmp_path, planar, (1, 1, 4)).tolist() == [[[1, 1, 1, 1]], [[1, 1, 2, 2]]]


def test_times_stay_apart_where_there_are_planes_to_link(tmp_path: Path) -> None:
    planar = np.arange(1, 5, dtype=np.uint64).reshape(2, 2, 1, 1) * np.ones((2, 2, 4, 4), np.uint64)
    assert link(tmp_path, planar, (1, 1, 4, 4))[..., 0, 0].tolist() == [[1, 1], [2, 2]]


def test_an_empty_stack_and_one_plane_have_nothing_to_link(tmp_path: Path) -> None:
    assert link(tmp_path / "empty", np.zeros((3, 4, 4), np.uint64), (1, 4, 4)).max() == 0
    assert link(tmp_path / "plane", np.array([[1, 0, 2]], np.uint64), (1, 2)).tolist() == [[1, 0, 2]]


def test_a_chain_through_many_ranges_has_one_number() -> None:
    numbers: dict[int, int] = {}
    n = 0
    for start in range(1, 1000, 7):
        before = np.arange(start - 1, start + 6)  # each goes on from the one before; 0 begins the chain
        found = chain(before, start, n, lambda ids: np.array([numbers[int(i)] for i in ids]))
        numbers.update(zip(range(start, start + 7), found.tolist(), strict=True))
        n += int((before == 0).sum())
    assert set(numbers.values()) == {1}
