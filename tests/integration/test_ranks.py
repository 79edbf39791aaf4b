"""A long function on a real worker process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from block_tasks import count, train_like

from unetflow.errors import StageError
from unetflow.runtime.ranks import run_ranks


def test_events_arrive_in_order_and_all_of_them(two_workers: Any, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    kwargs = {"folder": str(tmp_path), "steps": 200}
    result = run_ranks(train_like, kwargs, two_workers, on_event=events.append)
    assert result["step"] == 200
    assert [event["step"] for event in events] == list(range(200))


def test_a_stop_travels_to_the_worker_and_the_next_call_goes_on(two_workers: Any, tmp_path: Path) -> None:
    events: list[dict[str, Any]] = []
    kwargs = {"folder": str(tmp_path), "steps": 60, "seconds": 0.05}
    result = run_ranks(train_like, kwargs, two_workers, on_event=events.append, should_stop=lambda: len(events) > 1)
    assert result["is_stopped"]
    assert 1 < result["step"] < 60
    again = run_ranks(train_like, kwargs | {"seconds": 0.0}, two_workers, on_event=events.append)
    assert again["step"] == 60
    assert [event["step"] for event in events] == list(range(60))


def test_a_lost_worker_is_made_good(two_workers: Any, tmp_path: Path) -> None:
    result = run_ranks(train_like, {"folder": str(tmp_path), "steps": 10, "deaths": 1}, two_workers)
    assert result["step"] == 10
    assert count(tmp_path, "started", "rank") == 2


def test_a_function_that_always_kills_its_worker_is_given_up(two_workers: Any, tmp_path: Path) -> None:
    kwargs = {"folder": str(tmp_path), "steps": 10, "deaths": 100}
    with pytest.raises(StageError, match="lost at most 1 times"):
        run_ranks(train_like, kwargs, two_workers, restarts=1)


def test_an_exception_comes_back(two_workers: Any) -> None:
    with pytest.raises(FileNotFoundError):
        run_ranks(train_like, {"folder": "/nowhere", "steps": 1}, two_workers)
