"""A pass of a stage: its ledger, its totals and its figures."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from unetflow.errors import Interrupted
from unetflow.geometry import Block, BlockGrid, Box
from unetflow.stages.parts import Part
from unetflow.stages.work import Conditions, open_work
from unetflow.storage import lock
from unetflow.storage.lock import Holder

GRID = BlockGrid(Box.of_shape((6, 6)), (1, 1))


def number_of(block: Block) -> dict[str, Any]:
    return {"number": block.number}


@pytest.mark.parametrize("brick", [None, (2, 2)])
def test_after_a_restart_every_report_is_handed_on_and_figures_tell_the_passes_apart(
    tmp_path: Path, brick: tuple[int, int] | None
) -> None:
    first: dict[int, int] = {}
    conditions = Conditions(should_stop=lambda: len(first) >= 10)
    with pytest.raises(Interrupted), open_work("stage", tmp_path, {"a": 1}, conditions) as work:
        work.run_pass("sum", number_of, GRID, lambda n, r: first.__setitem__(n, r["number"]), brick=brick)
    assert len(first) == 10

    second: dict[int, int] = {}
    failures = [OSError("once")]

    def flaky(block: Block) -> dict[str, Any]:
        if failures:
            raise failures.pop()
        return {}

    with open_work("stage", tmp_path, {"a": 1}, Conditions()) as work:
        work.run_pass("sum", number_of, GRID, lambda n, r: second.__setitem__(n, r["number"]), brick=brick)
        work.run_pass("more", flaky, GRID)
    assert second == {n: n for n in range(36)}
    sums, more = work.passes["sum"], work.passes["more"]
    assert (sums.blocks, sums.skipped, sums.retries) == (36, 10, 0)
    assert (more.blocks, more.skipped, more.retries) == (36, 0, 1)
    assert 0 < sums.seconds + more.seconds <= work.totals()["seconds"] + 0.01
    assert (work.totals()["blocks"], work.totals()["blocks_skipped"], work.totals()["retries"]) == (72, 10, 1)


@pytest.mark.parametrize("part", [None, Part(1, 2)])
def test_a_stage_whose_lock_another_host_took_over_stops_and_leaves_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: Part | None
) -> None:
    monkeypatch.setattr(lock, "HEARTBEAT_SECONDS", 0.005)
    thief = json.dumps(asdict(replace(Holder.this_process(), host="another")))
    started: list[int] = []

    def slow(block: Block) -> dict[str, Any]:
        started.append(block.number)
        if len(started) == 3:
            [held] = tmp_path.rglob("lock")
            held.write_text(thief)
        time.sleep(0.05 if len(started) > 3 else 0.0)
        return {}

    with (
        pytest.raises(Interrupted, match="another one took .* over"),
        open_work("stage", tmp_path, {"a": 1}, Conditions(should_stop=lambda: False), part=part) as work,
    ):
        work.run_pass("sum", slow, GRID)
    assert len(started) < len(GRID)
    assert [held.read_text() for held in tmp_path.rglob("lock")] == [thief]
