"""A kill before and after each write, rename, record, lock and checkpoint: the same command goes on.

The chain kills a stage at one line after the other, each time a little further, and lets it end at last;
`make soak` also kills at each line alone.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import oracle
import pytest
from forks import Forks

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


@dataclass(frozen=True)
class Stage:
    """A stage to kill: its command, where its record and result lie, and what must come out."""

    words: tuple[str, ...]
    folder: str
    wanted: str
    points: tuple[str, ...]


STAGES = {
    "prepare": Stage(("prepare", "--run", "killed"), "killed", "run", (*BLOCKS, "before-unlock")),
    "prepare-classes": Stage(
        ("prepare", "--run", "killed", "--config", "classes.toml"), "killed", "classes", (*BLOCKS, "before-unlock")
    ),
    "segment": Stage(
        ("segment", "raw.zarr", "-o", "killed.zarr"), "killed.zarr", "raw.unetflow.zarr", (*BLOCKS, "before-unlock")
    ),
    "segment-watershed": Stage(
        ("segment", "raw.zarr", "-o", "killed.zarr", "--set", "segment.instances=watershed"), "killed.zarr",
        "watershed.zarr", (*BLOCKS, "before-unlock")
    ),
    "convert": Stage(
        ("convert", "raw.npy", "killed.zarr", "--shard", "1,64,64", "--chunk", "1,32,32"), "killed.zarr",
        "converted.zarr", (*BLOCKS[:15], "before-unlock")
    ),
    "train": Stage(("train", "--run", "killed"), "killed", "run", (*CHECKPOINTS, *LAST)),
}  # fmt: skip


@pytest.fixture
def stage(request: pytest.FixtureRequest, place: Path, forks: Forks) -> Stage:
    """The stage, with its undisturbed result beside it, and no trace of an earlier kill."""
    name = request.param
    chosen = STAGES[name]
    remove(place / chosen.folder)
    if name == "train":
        shutil.copytree(place / "run" / "dataset.zarr", place / "killed" / "dataset.zarr")
    if not (place / chosen.wanted).exists():
        make_input(name, place)
        words = [chosen.wanted if word in ("killed", "killed.zarr") else word for word in chosen.words]
        ended = forks.run(*words, "--cluster", "none", folder=place)
        assert ended.code == 0, ended
    request.addfinalizer(lambda: remove(place / chosen.folder))
    return chosen


def make_input(name: str, place: Path) -> None:
    import numpy as np
    import zarr

    if name == "prepare-classes":
        labels = np.asarray(zarr.open_array(place / "labels.zarr" / "0")[:])
        zarr.save_array(place / "classes-labels.zarr", (labels > 0).astype(np.uint8))
        text = (place / "unetflow.toml").read_text().replace('"labels.zarr"', '"classes-labels.zarr"\nkind = "classes"')
        (place / "classes.toml").write_text(text)
    if name == "convert":
        np.save(place / "raw.npy", np.asarray(zarr.open_array(place / "raw.zarr" / "0")[:]))


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def kill_at(point: str, chosen: Stage, place: Path, forks: Forks) -> set[tuple[str, int]]:
    """Run until the line, and return what the ledger then holds as done."""
    name = chosen.words[0]
    ended = forks.run(*chosen.words, "--cluster", "none", folder=place, **{VARIABLE: point})
    assert ended.code == -9, f"{point} did not kill: {ended}"
    return oracle.done(place / chosen.folder, name)


def go_on_to_the_end(chosen: Stage, place: Path, forks: Forks) -> dict[str, int]:
    ended = forks.run(*chosen.words, "--cluster", "none", "--json", "-q", folder=place)
    assert ended.code == 0, ended
    folder = place / chosen.folder
    wanted, found = oracle.tree(place / chosen.wanted), oracle.tree(folder)
    if chosen.words[0] == "prepare":  # what else lies in the run's folder came later
        wanted = {name: content for name, content in wanted.items() if name.startswith(("dataset", "previews"))}
    if chosen.words[0] == "train":
        wanted = {name: content for name, content in wanted.items() if not name.startswith("previews")}
    assert found.keys() == wanted.keys()
    assert [name for name in found if found[name] != wanted[name]] == []
    assert oracle.leftovers(folder) == []
    return dict(json.loads(ended.told.strip().splitlines()[-1]))


@pytest.mark.parametrize(
    "stage",
    [pytest.param(name, marks=[pytest.mark.soak] if "watershed" in name else []) for name in STAGES],
    indirect=True,
)
def test_a_stage_killed_at_every_line_ends_with_the_bytes_of_an_undisturbed_run(
    stage: Stage, place: Path, forks: Forks
) -> None:
    recorded: set[tuple[str, int]] = set()
    for point in stage.points:
        before, recorded = recorded, kill_at(point, stage, place, forks)
        assert before <= recorded, f"{point}: a record was lost"
    result = go_on_to_the_end(stage, place, forks)
    if stage.words[0] != "train":
        assert result["blocks_skipped"] == len(recorded)  # what was recorded is not done again, all else is
        assert len(oracle.done(place / stage.folder, stage.words[0])) == result["blocks"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("stage", "point"),
    [(name, point) for name, chosen in STAGES.items() for point in dict.fromkeys(chosen.points)],
    indirect=["stage"],
)
def test_a_kill_at_one_line_costs_at_most_the_blocks_in_flight(
    stage: Stage, point: str, place: Path, forks: Forks
) -> None:
    kill_at(point, stage, place, forks)
    go_on_to_the_end(stage, place, forks)
