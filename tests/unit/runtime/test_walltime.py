"""What follows from a job's time limit, in a worker and in the driver."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetflow.errors import InputError
from unetflow.runtime.progress import Silent
from unetflow.runtime.walltime import LastStart, end_of_job, margin_of, parse_walltime, worker_times


@pytest.mark.parametrize(
    ("kind", "text", "seconds"),
    [
        ("slurm", "90", 5400), ("slurm", "2:30", 150), ("slurm", "1:00:00", 3600), ("slurm", "2-12", 216000),
        ("slurm", "1-0:30", 88200), ("slurm", "1-0:30:10", 88210), ("pbs", "04:00:00", 14400), ("pbs", "3600", 3600),
        ("sge", "10:00", 600), ("lsf", "04:00", 14400), ("lsf", "90", 5400),
    ],
)  # fmt: skip
def test_a_time_limit_means_what_its_queue_means_by_it(kind: str, text: str, seconds: float) -> None:
    assert parse_walltime(kind, text) == seconds


@pytest.mark.parametrize(
    ("kind", "text"), [("slurm", "UNLIMITED"), ("slurm", "0"), ("lsf", "1:00:00"), ("pbs", "1-00"), ("sge", "")]
)
def test_what_is_no_time_limit_is_refused_with_the_form(kind: str, text: str) -> None:
    with pytest.raises(InputError, match=f"must be a time limit of {kind}"):
        parse_walltime(kind, text)


@given(st.floats(60, 10**7))
def test_a_worker_always_leaves_ahead_of_its_walltime_and_works_for_most_of_it(walltime: float) -> None:
    times = worker_times(walltime)
    assert times.last_start + times.stagger < times.lifetime + times.stagger < walltime
    assert times.last_start - times.stagger >= 0.7 * walltime
    assert margin_of(walltime) <= 300


def test_the_end_of_a_job_is_read_from_its_script_or_asked_of_slurm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert end_of_job({}) is None
    assert end_of_job({"UNETFLOW_JOB_END": "1000", "SLURM_JOB_END_TIME": "2000"}) == 1000
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 1-00:10:05\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    end = end_of_job({"SLURM_JOB_ID": "7"})
    assert end is not None
    assert end - time.time() == pytest.approx(86400 + 605, abs=30)
    (tmp_path / "squeue").write_text("#!/bin/sh\necho UNLIMITED\n")
    assert end_of_job({"SLURM_JOB_ID": "7"}) is None


def test_no_block_starts_that_would_not_end_within_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("unetflow.runtime.walltime.time.monotonic", lambda: now)
    watch = LastStart(Silent(), lambda: False, now + 100, is_walltime=True)
    watch.start("predict", 50)
    watch.workers(2)
    now += 20
    watch.advance()
    watch.advance()  # two workers, 20 s a block: the last may start 30 s ahead
    assert not watch()
    now += 49
    watch.advance(4)
    assert watch.block_seconds == pytest.approx(69 / 3)
    assert watch()
    assert watch.reason == "deadline"
    assert watch.n_recorded == 6
    watch.start("label", 50)  # nothing is known of these
    assert not watch()


def test_a_deadline_that_a_user_gave_is_when_the_last_block_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("unetflow.runtime.walltime.time.monotonic", lambda: now)
    watch = LastStart(Silent(), lambda: False, now + 100)
    watch.start("predict", 50)
    now += 99
    watch.advance()
    assert not watch()
    now += 2
    assert watch()


def test_a_signal_stops_without_any_deadline() -> None:
    assert LastStart(Silent(), lambda: True, None)()
    assert not LastStart(Silent(), lambda: False, None)()
