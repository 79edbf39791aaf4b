"""A long function on real worker processes; training by two of them, and what happens when one fails."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rank_tasks import count, train_like, train_squares
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.errors import Interrupted
from unetflow.nn.history import read_history
from unetflow.runtime.environment import threads_of_a_task
from unetflow.runtime.ranks import Supervision, run_ranks

PATIENT = Supervision(silence=120, first_silence=300, regather=120)  # no test waits so long
QUICK = Supervision(silence=6, first_silence=300, regather=120)


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
    assert count(tmp_path, "started") == 2


def test_workers_that_are_lost_again_and_again_end_the_command_which_may_be_given_again(
    two_workers: Any, tmp_path: Path
) -> None:
    kwargs = {"folder": str(tmp_path), "steps": 10, "deaths": 100}
    with pytest.raises(Interrupted, match="lost at most 1 times in a row"):
        run_ranks(train_like, kwargs, two_workers, how=Supervision(restarts=1))
    assert count(tmp_path, "started") == 2


def test_an_exception_comes_back(two_workers: Any) -> None:
    with pytest.raises(FileNotFoundError):
        run_ranks(train_like, {"folder": "/nowhere", "steps": 1}, two_workers)


def ranks(client: Any, folder: Path, n: int, steps: int = 12, **more: Any) -> dict[str, Any]:
    """Train by ``n`` ranks; return the result with all losses and the final weights of each rank.

    ``told`` are the steps that were told, in their order.
    """
    losses: dict[int, float] = {}
    told: list[int] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            losses[event["step"]] = event["loss"]
            told.append(event["step"])

    folder.mkdir(exist_ok=True)
    recipe = {"steps": steps, "validate_every": 4, **more.pop("recipe", {})}
    kwargs = {"folder": str(folder), "spec": more.pop("spec", {}), "recipe": recipe}
    call = {"how": PATIENT, **{key: more.pop(key) for key in ("should_stop", "how") if key in more}}
    on_event = more.pop("on_event", None)

    def both(event: dict[str, Any]) -> None:
        listen(event)
        if on_event:
            on_event(event)

    result = run_ranks(train_squares, {**kwargs, **more}, client, most=n, on_event=both, **call)
    states = [dict(np.load(folder / f"state-{rank}.npz")) for rank in range(result["world"])]
    return {**result, "losses": losses, "told": told, "states": states}


def equal(one: dict[str, Any], two: dict[str, Any]) -> bool:
    return one.keys() == two.keys() and all(np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        ({}, {"steps": 50, "batch_size": 5}),
        (
            {"norm": "layer"},
            {"steps": 50, "loss": "cross_entropy+dice", "batch_size": 3, "accumulate": 2, "ema": 0.9, "clip": 1.0},
        ),
    ],
    ids=["plain, uneven rows", "layer norm, dice, accumulated, ema"],
)
def test_two_ranks_have_the_losses_of_one(
    two_workers: Any, tmp_path: Path, spec: dict[str, Any], recipe: dict[str, Any]
) -> None:
    one = ranks(two_workers, tmp_path / "one", 1, spec=spec, recipe=recipe)
    two = ranks(two_workers, tmp_path / "two", 2, spec=spec, recipe=recipe)
    assert (one["world"], two["world"]) == (1, 2)
    assert list(two["losses"]) == list(range(1, 51))
    assert max(abs(one["losses"][step] - two["losses"][step]) for step in one["losses"]) <= 1e-4
    assert equal(*two["states"])
    scores = [[float(row["validation_loss"]) for row in read_history(tmp_path / name / "metrics.csv")]
              for name in ("one", "two")]  # fmt: skip
    assert np.allclose(*scores, atol=1e-4) and len(scores[0]) == 13


def test_batch_norm_has_the_same_running_means_on_all_ranks_and_after_a_step_that_was_cut_short(
    two_workers: Any, tmp_path: Path
) -> None:
    spec = {"norm": "batch"}
    whole = ranks(two_workers, tmp_path / "whole", 2, spec=spec)
    assert equal(*whole["states"])
    result = ranks(two_workers, tmp_path / "cut", 2, spec=spec, fault="fail midway", at_rank=0)
    assert count(tmp_path / "cut", "began0") == 2
    assert len(result["told"]) == len(result["losses"])
    assert equal(result["states"][0], whole["states"][0])


@pytest.fixture(scope="module")
def undisturbed(two_workers: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    yield ranks(two_workers, tmp_path_factory.mktemp("undisturbed"), 2)


def test_two_ranks_that_stop_and_go_on_give_the_same_bits(two_workers: Any, tmp_path: Path) -> None:
    seen: list[int] = []
    slow = {"on_event": lambda event: seen.append(event["step"]), "seconds": 0.05, "deaf": 0}
    stopped = ranks(two_workers, tmp_path, 2, should_stop=lambda: len(seen) > 1, steps=10_000, **slow)
    assert stopped["is_stopped"]
    assert count(tmp_path, "began0") == 1  # a stop that one rank alone has heard of stops all after the same step
    first = max(stopped["losses"])
    again = ranks(two_workers, tmp_path, 2, steps=first + 5)
    assert min(again["losses"]) == first + 1
    whole = ranks(two_workers, tmp_path.parent / f"{tmp_path.name}-whole", 2, steps=first + 5)
    assert whole["losses"] == {**stopped["losses"], **again["losses"]}
    assert equal(whole["states"][0], again["states"][0])


@pytest.mark.parametrize(
    ("fault", "at_rank", "at_beat"),  # the fifth beat is that of a validation, the sixth of a step
    [("die", 0, 6), ("die", 1, 5), ("fail", 1, 6), ("fail midway", 0, 6), ("hang", 0, 6), ("freeze", 1, 6)],
    ids=str,
)
def test_a_rank_that_fails_costs_no_step_and_changes_no_bit(
    two_workers: Any, tmp_path: Path, undisturbed: dict[str, Any], fault: str, at_rank: int, at_beat: int
) -> None:
    how = QUICK if fault in ("hang", "freeze") else PATIENT
    before = two_workers.run(os.getpid)
    result = ranks(two_workers, tmp_path, 2, fault=fault, at_rank=at_rank, at_beat=at_beat, how=how)
    assert (result["step"], result["world"]) == (12, 2)
    assert count(tmp_path, "fault") == 1
    assert count(tmp_path, "began0") == count(tmp_path, "began1") == 2
    # Who raises lets go of its connections: the others notice, and no worker has to be ended.
    assert (two_workers.run(os.getpid) == before) == fault.startswith("fail")
    # No step is done twice; rank 0 may have died before it told the last one that the others have done.
    assert len(result["told"]) == len(result["losses"]) >= (12 if at_rank else 11)
    assert result["losses"].items() <= undisturbed["losses"].items()
    assert [row["step"] for row in read_history(tmp_path / "metrics.csv")] == ["4", "8", "12"]
    assert equal(result["states"][0], undisturbed["states"][0])


def test_a_kill_in_the_middle_of_a_checkpoint_costs_no_step_and_changes_no_bit(
    two_workers: Any, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    how = {"fault": "die saving", "at_rank": 0, "recipe": {"checkpoint_minutes": 0.0}}
    result = ranks(two_workers, tmp_path, 2, **how)
    assert (count(tmp_path, "fault"), count(tmp_path, "began0")) == (1, 2)
    assert len(result["told"]) == len(result["losses"])
    assert equal(result["states"][0], undisturbed["states"][0])
    assert not list((tmp_path / "checkpoints").glob(".*")), "what a killed rank had begun to write is still there"


def test_a_full_disk_ends_the_call_which_goes_on_once_there_is_room(
    two_workers: Any, tmp_path: Path, undisturbed: dict[str, Any]
) -> None:
    how = {"at_rank": 0, "recipe": {"checkpoint_minutes": 0.0}}
    with pytest.raises(OSError, match="No space left"):
        ranks(two_workers, tmp_path, 2, fault="fill disk", **how)
    assert count(tmp_path, "began0") == 1
    again = ranks(two_workers, tmp_path, 2, **how)
    assert min(again["losses"]) in (5, 6)  # rank 1 may have had room for what rank 0 could not keep
    assert equal(again["states"][0], undisturbed["states"][0])


def test_a_rank_that_always_fails_is_given_up_with_what_it_said(two_workers: Any, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a device failed"):
        ranks(two_workers, tmp_path, 2, fault="fail", at_beat=1, times=99, how=replace(PATIENT, restarts=2))
    assert count(tmp_path, "began0") == 3


def test_what_no_other_try_mends_is_told_at_once(two_workers: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no other try mends it"):
        ranks(two_workers, tmp_path, 2, fault="refuse")
    assert count(tmp_path, "began1") == 1


def test_fewer_workers_go_on_with_the_same_global_batch(tmp_path: Path, undisturbed: dict[str, Any]) -> None:
    from unetflow.runtime.cluster import open_client

    with open_client("local", workers=2, log_folder=tmp_path / "logs") as client:
        assert client is not None
        for nanny in client.cluster.workers.values():
            nanny.close_gracefully()  # whose worker dies does not come back
        result = ranks(client, tmp_path, 2, fault="die", how=replace(PATIENT, regather=1))
    assert (result["step"], result["world"]) == (12, 1)
    assert list(result["losses"]) == list(undisturbed["losses"])
    assert max(abs(loss - undisturbed["losses"][step]) for step, loss in result["losses"].items()) <= 1e-4


@pytest.mark.parametrize(
    ("words", "n_workers"),
    [([], 1), (["--workers", "2"], 2), (["--cluster", "two.toml"], 2)],
    ids=["", "words", "file"],
)
def test_the_command_starts_one_worker_with_all_cores_or_as_many_as_were_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], n_workers: int
) -> None:
    def look(settings: Any, *, conditions: Any, **_: Any) -> dict[str, Any]:
        client = conditions.client
        return {"workers": len(client.nthreads()), "threads": client.submit(threads_of_a_task).result()}

    (tmp_path / "two.toml").write_text('kind = "local"\nworkers = 2\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unetflow.stages.train.train", look)
    result = CliRunner().invoke(app, ["train", "--json", *words])
    assert result.exit_code == 0, result.stderr
    n_cores = len(os.sched_getaffinity(0))
    assert json.loads(result.stdout) == {"workers": n_workers, "threads": max(1, n_cores // n_workers)}
