"""Batches are a function of seed and step, and hold each patch once an epoch."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.nn.patches import Patches, numbered
from unetflow.errors import InputError
from unetflow.nn.augment import Augmentation
from unetflow.nn.dataset import Batches, in_order, order

BYTES = 16 * (1 + 1 + 4)  # of a numbered patch


def take(n: int, source: Patches, **how: Any) -> list[Any]:
    with Batches(source, **how) as batches:
        return list(itertools.islice(batches, n))


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 5), st.integers(0, 99), st.integers(0, 5))
def test_an_order_holds_each_patch_once(n: int, shard_size: int, group: int, seed: int, epoch: int) -> None:
    numbers = order(seed, epoch, n, shard_size=shard_size, group=group)
    assert sorted(numbers.tolist()) == list(range(n))
    assert np.array_equal(numbers, order(seed, epoch, n, shard_size=shard_size, group=group))
    assert sorted(order(seed, epoch, n).tolist()) == list(range(n))


@given(st.integers(1, 9), st.integers(1, 5))
def test_a_stretch_as_long_as_a_group_touches_few_shards(shard_size: int, group: int) -> None:
    numbers = order(0, 0, 10 * shard_size, shard_size=shard_size, group=group)
    for first in range(0, 10 * shard_size, group * shard_size):
        shards = set((numbers[first : first + group * shard_size] // shard_size).tolist())
        assert len(shards) <= group


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(order(seed, epoch, 50).tolist()) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@pytest.mark.parametrize("memory", [10**9, 8 * 4 * BYTES, 0])
def test_an_epoch_shows_each_patch_once_whatever_memory_there_is(memory: int) -> None:
    source = numbered(50)
    batches = take(20, source, batch_size=5, memory_bytes=memory)
    for epoch in (batches[:10], batches[10:]):
        assert sorted(int(n) for batch in epoch for n in batch.target[:, 0, 0]) == list(range(50))


def test_what_fits_into_memory_is_read_once() -> None:
    source = numbered(20)
    take(30, source, batch_size=5)
    read = [n for numbers in source.asked[1:] for n in numbers]
    assert sorted(read) == list(range(20))


def test_patches_that_do_not_fit_are_read_shard_by_shard_about_once_an_epoch() -> None:
    source = numbered(200)
    take(200, source, batch_size=1, memory_bytes=20 * 4 * BYTES)
    assert all(numbers[0] % 4 == 0 and len(numbers) == 4 for numbers in source.asked[1:])
    assert len(source.asked) < 90  # 50 shards, read ahead, and a few twice


def test_batches_from_a_later_step_are_those_of_a_run_from_the_start() -> None:
    how = {"batch_size": 3, "seed": 4, "augmentation": Augmentation(brightness=1, contrast=1, noise=1)}
    first, later = take(12, numbered(10), **how), take(7, numbered(10), first_step=5, **how)
    for one, two in zip(first[5:], later, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_a_patch_changes_in_the_same_way_in_batches_of_any_size() -> None:
    how = {"seed": 4, "augmentation": Augmentation(brightness=1, contrast=1, noise=1)}
    by_two, by_four = take(8, numbered(10), batch_size=2, **how), take(4, numbered(10), batch_size=4, **how)
    for index in range(3):
        joined = np.concatenate([batch[index] for batch in by_two])
        assert np.array_equal(joined, np.concatenate([batch[index] for batch in by_four]))


def test_images_are_prepared_by_number() -> None:
    def prepare(image: npt.NDArray[Any], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return (image - numbers[:, None, None, None]).astype(np.float32)

    for batch in [*take(5, numbered(9), batch_size=2, prepare=prepare), *in_order(numbered(9), 2, prepare)]:
        assert batch.image.dtype == np.float32
        assert not batch.image.any()


def test_validation_goes_through_all_patches_by_number() -> None:
    batches = list(in_order(numbered(7), 3))
    assert [len(batch.image) for batch in batches] == [3, 3, 1]
    assert [int(n) for batch in batches for n in batch.target[:, 0, 0]] == list(range(7))


def test_an_error_in_reading_reaches_the_one_who_asks() -> None:
    class Broken(Patches):
        def read(self, numbers: Sequence[int]) -> Any:
            if len(numbers) > 1:
                raise OSError("chunk 3 is damaged")
            return super().read(numbers)

    good = numbered(8)
    with pytest.raises(OSError, match="chunk 3"):
        take(1, Broken(good.image, good.target, good.weight), batch_size=2)


def test_a_source_without_patches_is_refused() -> None:
    with pytest.raises(InputError, match="at least 1 patch"):
        take(1, numbered(0), batch_size=2)
