"""A pass of a stage: its ledger, its totals and its figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unetflow.errors import Interrupted
from unetflow.geometry import Block, BlockGrid, Box
from unetflow.stages.work import Conditions, open_work

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
