"""A kill before and after each write, rename, record, lock and checkpoint: the same command goes on.

The chain kills a stage at one line after the other, each time a little further, and lets it end at last;
`make soak` also kills at each line alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import oracle
import pytest
from forks import Forks
from killable import STAGES, Stage, go_on_to_the_end, set_up

from unetflow.failpoints import VARIABLE

# Lines, and at which pass each kills: first where the stores are made, then among the blocks.
BLOCKS = (
    "before-lock", "half-lock", "after-lock", "before-ledger", "after-ledger", "before-record", "half-record:2",
    "after-record:3", "before-data", "half-data:3", "before-rename:3", "after-rename:4", "before-write", "after-write",
    "half-data:20", "before-rename:9", "after-rename:9", "after-write:3", "half-record:5", "after-record:8",
)  # fmt: skip
CHECKPOINTS = (
    "before-ledger", "after-ledger", "before-record", "half-record:4", "before-metrics", "before-tensors",
    "half-tensors", "before-tensors-rename", "after-tensors-rename", "half-tensors:2", "before-checkpoint-removal",
    "before-row", "half-tensors", "before-tensors-rename", "after-tensors-rename",
)  # fmt: skip
LAST = ("half-tensors", "before-tensors-rename", "after-tensors-rename", "before-unlock")  # of the model file


SPECIAL = {"train": (*CHECKPOINTS, *LAST), "convert": (*BLOCKS[:15], "before-unlock")}
POINTS = {name: SPECIAL.get(name, (*BLOCKS, "before-unlock")) for name in STAGES}


@pytest.fixture
def stage(request: pytest.FixtureRequest, place: Path, forks: Forks) -> Iterator[Stage]:
    yield set_up(request.param, place, forks)
    set_up(request.param, place, forks)


def kill_at(point: str, chosen: Stage, place: Path, forks: Forks) -> set[tuple[str, int]]:
    """Run until the line, and return what the ledger then holds as done; no chunk is there by half."""
    ended = forks.run(*chosen.words, "--cluster", "none", folder=place, **{VARIABLE: point})
    assert ended.code == -9, f"{point} did not kill: {ended}"
    wanted, found = oracle.tree(place / chosen.wanted), oracle.tree(place / chosen.folder)
    chunks = {name for name in found.keys() & wanted.keys() if "/c/" in name}
    assert {name for name in chunks if found[name] != wanted[name]} == set(), f"{point}: half a chunk under its name"
    return oracle.done(place / chosen.folder, chosen.name)


@pytest.mark.parametrize(
    "stage",
    [pytest.param(name, marks=[pytest.mark.soak] if "watershed" in name else []) for name in STAGES],
    indirect=True,
)
def test_a_stage_killed_at_every_line_ends_with_the_bytes_of_an_undisturbed_run(
    stage: Stage, place: Path, forks: Forks, request: pytest.FixtureRequest
) -> None:
    recorded: set[tuple[str, int]] = set()
    for point in POINTS[request.node.callspec.params["stage"]]:
        before, recorded = recorded, kill_at(point, stage, place, forks)
        assert before <= recorded, f"{point}: a record was lost"
    result = go_on_to_the_end(stage, place, forks)
    if stage.name != "train":
        assert result["blocks_skipped"] == len(recorded)  # what was recorded is not done again, all else is
        assert len(oracle.done(place / stage.folder, stage.name)) == result["blocks"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("stage", "point"),
    [(name, point) for name, points in POINTS.items() for point in dict.fromkeys(points)],
    indirect=["stage"],
)
def test_a_kill_at_one_line_costs_at_most_the_blocks_in_flight(
    stage: Stage, point: str, place: Path, forks: Forks
) -> None:
    kill_at(point, stage, place, forks)
    go_on_to_the_end(stage, place, forks)
