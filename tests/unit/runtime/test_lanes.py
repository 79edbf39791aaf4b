"""Lanes: neighbours go to one worker, and nobody idles while there is something to do."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetflow.geometry import BlockGrid, Box
from unetflow.runtime.lanes import Lanes


def grid(*counts: int) -> BlockGrid:
    return BlockGrid(Box.of_shape(counts), (1,) * len(counts))


def take(lanes: Lanes, worker: str, n_most: int = 1, n_workers: int = 1) -> list[int]:
    return [block.number for block in lanes.take(worker, n_most, n_workers)]


WHAT = st.sampled_from(["", "peek", "back", "gone"])


@given(
    counts=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    brick=st.none() | st.tuples(st.integers(1, 4), st.integers(1, 4)),
    done=st.frozensets(st.integers(0, 35)),
    turns=st.lists(
        st.tuples(st.sampled_from("ABCD"), st.integers(1, 5), st.sampled_from(["", "peek", "back", "gone"]))
    ),
)
def test_every_block_is_taken_once_or_skipped_whoever_takes_it(
    counts: tuple[int, int],
    brick: tuple[int, int] | None,
    done: frozenset[int],
    turns: list[tuple[str, int, str]],
) -> None:
    lanes, taken = Lanes(grid(*counts), brick, done), []
    for worker, n_most, what in turns:
        run = lanes.take(worker, n_most, 4)
        assert len(run) <= n_most
        if what == "back":
            lanes.give_back(worker, run[1:])
            run = run[:1]
        elif what == "gone":
            lanes.keep([w for w in "ABCD" if w != worker])
        elif what == "peek" and run:
            ahead = lanes.peek(worker)
            following = lanes.take(worker, 1, 4) if ahead else []
            assert following == ([ahead] if ahead else [])
            run += following
        taken += [block.number for block in run]
    while run := take(lanes, "Z", 3, 4):
        taken += run
    assert lanes.is_empty()
    planned = set(range(counts[0] * counts[1]))
    assert sorted(taken) == sorted(planned - done)
    assert lanes.n_skipped == len(planned & done)


@given(n_workers=st.integers(1, 9), n_blocks=st.integers(1, 60))
def test_without_bricks_workers_begin_with_equal_contiguous_parts(n_workers: int, n_blocks: int) -> None:
    lanes = Lanes(grid(n_blocks), None, ())
    workers = [str(w) for w in range(n_workers)]
    parts = defaultdict(list)
    for worker in workers:
        parts[worker] += take(lanes, worker, 1, n_workers)
    share = n_blocks / n_workers
    starts = sorted(part[0] for part in parts.values() if part)
    assert len(starts) == min(n_workers, n_blocks)
    gaps = [b - a for a, b in zip(starts, [*starts[1:], n_blocks], strict=True)]
    assert min(gaps) >= int(share) - 1
    assert max(gaps) <= share + 2


def test_a_worker_stays_in_its_brick_until_that_is_done() -> None:
    lanes = Lanes(grid(4, 4), (2, 2), ())
    assert take(lanes, "A", 3) == [0, 1, 4]
    assert take(lanes, "B", 3) == [2, 3, 6]
    assert take(lanes, "A", 3) == [5]  # a run never crosses bricks
    assert take(lanes, "A", 3) == [8, 9, 12]
    assert take(lanes, "B", 9) == [7]


def test_who_has_nothing_takes_half_of_the_longest_lane() -> None:
    lanes = Lanes(grid(12), (6,), ())
    assert take(lanes, "A") == [0]
    assert take(lanes, "B", 4) == [6, 7, 8, 9]
    assert take(lanes, "C", 9) == [3, 4, 5][1:]  # A has 1 to 5 left, B 10 and 11
    assert take(lanes, "A", 9) == [1, 2, 3]


def test_the_last_block_of_a_lane_can_be_taken_by_another_though_it_was_looked_at() -> None:
    lanes = Lanes(grid(2), None, ())
    assert take(lanes, "A") == [0]
    ahead = lanes.peek("A")
    assert ahead is not None
    assert ahead.number == 1
    assert take(lanes, "B") == [1]
    assert take(lanes, "A") == []


def test_the_lane_of_a_worker_that_is_gone_is_taken_over_first() -> None:
    lanes = Lanes(grid(9), (3,), ())
    assert take(lanes, "A") == [0]
    lanes.keep(["B"])
    assert take(lanes, "B", 9) == [1, 2]
    assert take(lanes, "B", 9) == [3, 4, 5]


def test_what_was_given_back_comes_next() -> None:
    lanes = Lanes(grid(6), None, ())
    run = lanes.take("A", 4)
    lanes.give_back("A", run[1:])
    assert take(lanes, "A", 9) == [1, 2, 3, 4, 5]


def test_bricks_are_opened_when_they_are_needed() -> None:
    opened = []

    class Counted:
        def __len__(self) -> int:
            return 100

        def __getitem__(self, position: int) -> object:
            raise AssertionError

        def bricks(self, shape: tuple[int, ...]) -> object:
            for brick in grid(100).bricks(shape):
                opened.append(brick)
                yield brick

    lanes = Lanes(Counted(), (10,), ())  # type: ignore[arg-type]
    assert opened == []
    take(lanes, "A", 5)
    take(lanes, "B", 5)
    assert len(opened) == 2


def test_blocks_without_bricks_are_refused() -> None:
    with pytest.raises(TypeError, match="must have a method 'bricks' .*, got list"):
        Lanes(list(grid(3)), (2,), ())
