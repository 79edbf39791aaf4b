"""One long function, in this process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unetflow.errors import InputError
from unetflow.runtime.ranks import run_ranks


def count_up(
    rank: int,
    world: int,
    emit: Callable[[dict[str, Any]], None],
    should_stop: Callable[[], bool],
    *,
    steps: int,
) -> int:
    for step in range(steps):
        if should_stop():
            return step
        emit({"step": step, "rank": rank, "world": world})
    return steps


def test_events_and_the_result_come_back() -> None:
    events: list[dict[str, Any]] = []
    assert run_ranks(count_up, {"steps": 3}, on_event=events.append) == 3
    assert [e["step"] for e in events] == [0, 1, 2]
    assert {(e["rank"], e["world"]) for e in events} == {(0, 1)}


def test_a_stop_reaches_the_function() -> None:
    events: list[dict[str, Any]] = []
    steps = run_ranks(count_up, {"steps": 9}, on_event=events.append, should_stop=lambda: len(events) >= 2)
    assert steps == 2


def test_its_exception_is_raised_as_it_is() -> None:
    def fail(*_: Any) -> None:
        raise InputError("the rule")

    with pytest.raises(InputError, match="the rule"):
        run_ranks(fail, {})
