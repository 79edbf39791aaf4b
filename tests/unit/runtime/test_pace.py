"""Runs of a few seconds, short at both ends of a pass."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetflow.runtime.pace import MAX_RUN, Pace


def test_the_first_runs_are_single_blocks() -> None:
    assert Pace("auto").run_length(10**9, 1) == 1


@given(
    seconds=st.floats(0, 1000),
    n_left=st.integers(0, 10**6),
    n_workers=st.integers(0, 1000),
)
def test_a_run_takes_a_few_seconds_and_leaves_something_for_every_worker(
    seconds: float, n_left: int, n_workers: int
) -> None:
    pace = Pace("auto")
    pace.note(seconds * 7, 7)
    length = pace.run_length(n_left, n_workers)
    assert 1 <= length <= MAX_RUN
    if length > 1:
        assert length * seconds <= 5.0
        assert length <= n_left / (2 * max(1, n_workers))
    enough = n_left >= 2 * MAX_RUN * max(1, n_workers)
    if enough and length < MAX_RUN:
        assert (length + 1) * seconds > 2.0


def test_the_pace_follows_what_blocks_take_now() -> None:
    pace = Pace("auto")
    pace.note(60.0, 1)  # a model is loaded
    for _ in range(20):
        pace.note(0.1, 1)
    assert 20 <= pace.run_length(10**6, 1) <= 50
    for _ in range(5):
        pace.note(10.0, 1)
    assert pace.run_length(10**6, 1) == 1


def test_a_given_length_stands() -> None:
    pace = Pace(5)
    pace.note(100.0, 1)
    assert pace.run_length(1, 100) == 5
    assert pace.longest is None
    with pytest.raises(ValueError, match="at least 1, got 0"):
        Pace(0)
