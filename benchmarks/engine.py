"""What the block engine costs on empty work, against a bare loop of `client.submit`.

Our side is a whole pass: a real ledger on disk, reports recorded, retries and a stop at hand. The
bare loop keeps as many tasks in flight and records nothing. Both run on the same client of two
workers of one thread, by turns; of the few blocks the fastest round of each counts. Memory is the resident set of this
process, which holds driver and scheduler, after a pass of few and of many blocks.

    python benchmarks/engine.py [--rounds 2] [--few 2000] [--many 50000]
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import psutil
from report import write_report

from unetflow.geometry import Block, BlockGrid, Box
from unetflow.runtime.cluster import open_client
from unetflow.runtime.executors import WINDOW
from unetflow.stages.work import Conditions, open_work

WORKERS = 2
COST_BAR, MEMORY_BAR = 1.5, 30.0  # times the bare loop's seconds; MB


@dataclass(frozen=True)
class Nothing:
    """A task that reads, computes and writes nothing."""

    def __call__(self, block: Block) -> dict[str, Any]:
        return {}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--few", type=int, default=2_000)
    parser.add_argument("--many", type=int, default=50_000)
    options = parser.parse_args()
    with open_client("local", workers=WORKERS) as client:
        client.wait_for_workers(WORKERS)
        engine(client, 200)
        bare(client, 200)
        memory = [grown(client, n) for n in (options.few, options.many)]
        rows = [
            against_bare(client, options.few, options.rounds),
            against_bare(client, options.many, 1),
        ]
        rows.append(one_by_one(client, options.few, options.rounds))
    rows.append(memory_row(options.few, options.many, memory[1] - memory[0]))
    note = (
        f"{WORKERS} workers of one thread, {WINDOW * WORKERS} tasks in flight on both sides, empty blocks; "
        f"of the few, the fastest of {options.rounds} rounds by turns"
    )
    write_report("engine", rows, note)
    return 1 if any(row["holds"] == "NO" for row in rows) else 0


def grid(n_blocks: int) -> BlockGrid:
    return BlockGrid(Box.of_shape((n_blocks,)), (1,))


def engine(client: Any, n_blocks: int, run_length: int | Literal["auto"] = "auto") -> float:
    """Return the seconds of a pass with its ledger."""
    with (
        tempfile.TemporaryDirectory() as folder,
        open_work("engine", folder, {"benchmark": "engine"}, Conditions(client)) as work,
    ):
        began = time.perf_counter()
        work.run_pass("empty", Nothing(), grid(n_blocks), run_length=run_length)
        seconds = time.perf_counter() - began
        assert work.passes["empty"].blocks == len(work.ledger.done("empty")) == n_blocks
    return seconds


def bare(client: Any, n_blocks: int) -> float:
    """Return the seconds of a loop that keeps a window of tasks in flight, a block a task."""
    from distributed import as_completed

    task, blocks, n_done = Nothing(), iter(grid(n_blocks)), 0
    began = time.perf_counter()
    completed = as_completed(
        (client.submit(task, block, pure=False) for block in islice(blocks, WINDOW * WORKERS)),
        loop=client.loop,
        with_results=True,
    )
    for _ in completed:
        n_done += 1
        if (block := next(blocks, None)) is not None:
            completed.add(client.submit(task, block, pure=False))
    seconds = time.perf_counter() - began
    assert n_done == n_blocks
    return seconds


def race(one: Callable[[], float], other: Callable[[], float], rounds: int) -> tuple[float, float]:
    times = [(one(), other()) for _ in range(rounds)]
    return min(t[0] for t in times), min(t[1] for t in times)


def against_bare(client: Any, n_blocks: int, rounds: int) -> dict[str, str]:
    ours, theirs = race(lambda: engine(client, n_blocks), lambda: bare(client, n_blocks), rounds)
    return cost_row(f"{n_blocks:,} blocks, runs as the engine chooses", n_blocks, ours, theirs, COST_BAR)


def one_by_one(client: Any, n_blocks: int, rounds: int) -> dict[str, str]:
    ours, theirs = race(lambda: engine(client, n_blocks, 1), lambda: bare(client, n_blocks), rounds)
    return cost_row(f"{n_blocks:,} blocks, one a task", n_blocks, ours, theirs, None)


def cost_row(what: str, n_blocks: int, ours: float, theirs: float, bar: float | None) -> dict[str, str]:
    return {
        "what": what,
        "ours": f"{1e3 * ours / n_blocks:.3f} ms a block",
        "theirs": f"{1e3 * theirs / n_blocks:.3f} ms a block",
        "ratio": f"{ours / theirs:.2f}",
        "bar": "none" if bar is None else f"at most {bar:g}",
        "holds": "yes" if bar is None or ours <= bar * theirs else "NO",
    }


def grown(client: Any, n_blocks: int) -> float:
    """Return the memory of this process after a pass, in MB."""
    engine(client, n_blocks)
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 1e6


def memory_row(few: int, many: int, grown_by: float) -> dict[str, str]:
    return {
        "what": f"driver's memory, {many:,} blocks beyond {few:,}",
        "ours": f"{grown_by:.1f} MB",
        "theirs": "",
        "ratio": "",
        "bar": f"under {MEMORY_BAR:g} MB",
        "holds": "yes" if grown_by < MEMORY_BAR else "NO",
    }


if __name__ == "__main__":
    sys.exit(main())
