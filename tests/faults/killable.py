"""Stages that tests kill: their commands, their undisturbed results, and the end that must come out."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import oracle
from forks import Forks


@dataclass(frozen=True)
class Stage:
    """A stage to kill: its command, where its record and result lie, and what must come out."""

    words: tuple[str, ...]
    folder: str
    wanted: str

    @property
    def name(self) -> str:
        return self.words[0]


STAGES = {
    "prepare": Stage(("prepare", "--run", "killed"), "killed", "run"),
    "prepare-classes": Stage(("prepare", "--run", "killed", "--config", "classes.toml"), "killed", "classes"),
    "segment": Stage(("segment", "raw.zarr", "-o", "killed.zarr"), "killed.zarr", "raw.unetflow.zarr"),
    "segment-watershed": Stage(
        ("segment", "raw.zarr", "-o", "killed.zarr", "--set", "segment.instances=watershed"), "killed.zarr",
        "watershed.zarr",
    ),
    "convert": Stage(
        ("convert", "raw.npy", "killed.zarr", "--shard", "1,64,64", "--chunk", "1,32,32"), "killed.zarr",
        "converted.zarr",
    ),
    "train": Stage(("train", "--run", "killed"), "killed", "run"),
}  # fmt: skip


def set_up(name: str, place: Path, forks: Forks) -> Stage:
    """Return the stage, with its undisturbed result in place, and no trace of an earlier kill."""
    chosen = STAGES[name]
    shutil.rmtree(place / chosen.folder, ignore_errors=True)
    if name == "train":
        shutil.copytree(place / "run" / "dataset.zarr", place / "killed" / "dataset.zarr")
    if not (place / chosen.wanted).exists():
        _make_input(name, place)
        words = [chosen.wanted if word in ("killed", "killed.zarr") else word for word in chosen.words]
        ended = forks.run(*words, "--cluster", "none", folder=place)
        assert ended.code == 0, ended
    return chosen


def _make_input(name: str, place: Path) -> None:
    import numpy as np
    import zarr

    if name == "prepare-classes":
        labels = np.asarray(zarr.open_array(place / "labels.zarr" / "0")[:])
        zarr.save_array(place / "classes-labels.zarr", (labels > 0).astype(np.uint8))
        text = (place / "unetflow.toml").read_text().replace('"labels.zarr"', '"classes-labels.zarr"\nkind = "classes"')
        (place / "classes.toml").write_text(text)
    if name == "convert":
        np.save(place / "raw.npy", np.asarray(zarr.open_array(place / "raw.zarr" / "0")[:]))


def go_on_to_the_end(chosen: Stage, place: Path, forks: Forks, *options: str) -> dict[str, Any]:
    """Give the same command again; it must end with the bytes of the undisturbed run and leave nothing."""
    ended = forks.run(*chosen.words, *(options or ("--cluster", "none")), "--json", "-q", folder=place)
    assert ended.code == 0, ended
    check(chosen, place)
    return dict(json.loads(ended.told.strip().splitlines()[-1]))


def check(chosen: Stage, place: Path) -> None:
    """Compare a result with the undisturbed one."""
    wanted, found = oracle.tree(place / chosen.wanted), oracle.tree(place / chosen.folder)
    # What the other of the two wrote into the run's folder lies beside.
    is_of_training = {name: name.startswith(("model", "metrics", "previews/validation")) for name in wanted}
    if chosen.name == "prepare":
        wanted = {name: content for name, content in wanted.items() if not is_of_training[name]}
    if chosen.name == "train":
        wanted = {n: content for n, content in wanted.items() if is_of_training[n] or n.startswith("dataset")}
    assert found.keys() == wanted.keys(), sorted(found.keys() ^ wanted.keys())
    differing = [name for name in found if found[name] != wanted[name]]
    assert not differing, {name: (found[name][:400], wanted[name][:400]) for name in differing[:2]}
    assert oracle.leftovers(place / chosen.folder) == []
