"""What neighbours share is fetched once, and a cache never changes a voxel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from unetflow.geometry import BlockGrid, Box
from unetflow.storage.chunks import ChunkCache, split_boxes
from unetflow.storage.volume import Volume, open_volume

SHAPE, CHUNK = (20, 34, 50), (8, 16, 16)


@pytest.fixture(params=["plain", "sharded", "channels"])
def volume(request: Any, tmp_path: Path) -> Volume:
    lead = (2,) if request.param == "channels" else ()
    shard = tuple(2 * c for c in CHUNK) if request.param == "sharded" else None
    chunk = (1,) * len(lead) + CHUNK
    array = zarr.create_array(tmp_path / "a", shape=lead + SHAPE, chunks=chunk, shards=shard, dtype="uint16")
    array[...] = np.random.default_rng(0).integers(0, 2**16, lead + SHAPE)
    return open_volume(str(tmp_path / "a"), axes="czyx" if lead else "zyx")


def boxes(seed: int, n: int) -> list[Box]:
    rng = np.random.default_rng(seed)
    ends = [np.sort([rng.integers(-9, s + 9, 2) for s in SHAPE], axis=1) for _ in range(n)]
    return [Box(tuple(e[:, 0].tolist()), tuple((e[:, 1] + 1).tolist())) for e in ends]


@pytest.mark.parametrize("budget", [0, 20_000, 10**7])
def test_reads_through_a_cache_are_the_plain_reads(volume: Volume, budget: int) -> None:
    cache = ChunkCache(budget)
    for box in boxes(1, 30):
        assert np.array_equal(volume.read_mirrored(box, cache=cache), volume.read_mirrored(box))


def test_each_chunk_is_fetched_once_where_all_fit(volume: Volume) -> None:
    cache = ChunkCache(10**7)
    for block in BlockGrid(volume.box, (7, 9, 11), (5, 5, 5), (5, 5, 5)):
        volume.read_mirrored(block.outer, cache=cache)
    counts = cache.take_counts()
    assert counts == {"chunks": 3 * 3 * 4, "fetched": volume.nbytes}
    assert cache.take_counts() == {"chunks": 0, "fetched": 0}


def test_chunks_of_one_value_take_no_memory_and_keep_every_bit(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "a", shape=(64, 64), chunks=(16, 16), dtype="float32", fill_value=np.nan)
    array[:16] = -0.0
    array[16:32, :32] = 0.0
    array[20, 20] = -0.0
    there = open_volume(str(tmp_path / "a"), axes="yx")
    cache = ChunkCache(16 * 1024 + 16 * 16 * 4)
    for _ in range(2):
        found = there.read_mirrored(there.box, cache=cache)
        assert np.array_equal(found.view("u4"), there.read_mirrored(there.box).view("u4"))
    assert cache.take_counts() == {"chunks": 16, "fetched": there.nbytes}
    assert cache._size == 15 * 1024 + 16 * 16 * 4


def test_no_more_bytes_are_kept_than_allowed(volume: Volume) -> None:
    cache = ChunkCache(20_000)
    for box in boxes(2, 20):
        volume.read_mirrored(box, cache=cache)
        assert sum(chunk.nbytes for chunk in cache._kept.values()) <= 20_000


def test_what_was_read_cannot_be_changed_from_outside(volume: Volume) -> None:
    cache = ChunkCache(10**7)
    first = volume.read(volume.box, cache)
    expected = first.copy()
    first[...] = 0
    assert np.array_equal(volume.read(volume.box, cache), expected)


@given(hnp.arrays(bool, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5)))
def test_boxes_cover_the_true_places_and_nothing_else(flags: np.ndarray[Any, Any]) -> None:
    covered = np.zeros(flags.shape, int)
    for start, stop in split_boxes(flags):
        covered[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] += 1
    assert np.array_equal(covered, flags.astype(int))


@given(st.integers(1, 6), st.integers(1, 6))
def test_a_full_array_is_one_box(n: int, m: int) -> None:
    assert split_boxes(np.ones((n, m), bool)) == [((0, 0), (n, m))]
