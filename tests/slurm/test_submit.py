"""A driver that is a job itself: `sbatch submit.sbatch segment ...`, once, and the queue does the rest."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from queue_commands import run, wait_until

pytestmark = pytest.mark.slurm

SCRIPT = Path(__file__).parents[2] / "cluster" / "submit.sbatch"
# Stands in for the command: leaves what it got, records as many blocks as `blocks` says, and ends as told.
COMMAND = """#!/bin/bash
echo "start $*" >> starts
trap 'echo "$(date +%s) USR1" >> signals; sleep 0.3; stop=75' USR1
trap 'echo "$(date +%s) TERM" >> signals; sleep 0.3; stop=75' TERM
echo ready >> ready
while [ -z "$stop" ] && [ ! -e "exit" ]; do sleep 0.1; done
cp blocks "$UNETFLOW_COUNT_FILE"
exit "${stop:-$(cat exit)}"
"""


@pytest.fixture
def folder(tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where jobs are submitted, with a command of that name."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "unetflow").write_text(COMMAND)
    (tmp_path / "bin" / "unetflow").chmod(0o755)
    (tmp_path / "blocks").write_text("5\n")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    run("scancel", "-n", "unetflow")


def submit(*options: str) -> str:
    words = ("--mem=100M", "--cpus-per-task=1", *options, str(SCRIPT), "segment", "my volume.zarr")
    return run("sbatch", "--parsable", *words).strip()


def lines(name: str) -> list[str]:
    return Path(name).read_text().splitlines() if Path(name).exists() else []


def state(job: str) -> str:
    return run("squeue", "-h", "-j", job, "-o", "%T").strip()


def restart_now(job: str) -> None:
    """Start a requeued job soon: SLURM itself waits two minutes."""
    wait_until(lambda: state(job) == "PENDING")
    # Not at once: SLURM counts in seconds, and refuses a start in the second in which it ended the last one
    # ("job credential revoked"); a start that lies ahead it looks for once a minute only.
    wait_until(lambda: set(run("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"})
    time.sleep(2)
    run("scontrol", "update", f"JobId={job}", "StartTime=now")


def warn(job: str, n_starts: int) -> None:
    """Send what SLURM sends ahead of the time limit."""
    wait_until(lambda: len(lines("ready")) == n_starts)
    run("scancel", "--signal=USR1", "--batch", job)


def test_a_command_stopped_ahead_of_its_time_starts_again_and_ends_with_its_own_code(folder: Path) -> None:
    job = submit("--time=10")
    warn(job, 1)
    restart_now(job)
    wait_until(lambda: len(lines("ready")) == 2)
    Path("exit").write_text("3")
    wait_until(lambda: not state(job))
    assert lines("starts") == ["start segment my volume.zarr"] * 2
    assert "ExitCode=3:0" in run("scontrol", "show", "job", job)
    assert [line.split()[1] for line in lines("signals")] == ["USR1"]
    assert not list(folder.glob("unetflow-*.state")) + list(folder.glob("unetflow-*.count"))


def test_two_starts_in_a_row_that_recorded_no_block_are_the_last(folder: Path) -> None:
    Path("blocks").write_text("0\n")
    job = submit("--time=10")
    warn(job, 1)
    restart_now(job)
    warn(job, 2)
    wait_until(lambda: not state(job))
    assert len(lines("starts")) == 2
    assert "two starts in a row recorded no block" in Path(f"unetflow-{job}.log").read_text()
    assert "ExitCode=75:0" in run("scontrol", "show", "job", job)


def test_a_cancelled_job_does_not_start_again_and_its_command_ends_cleanly(folder: Path) -> None:
    job = submit("--time=10")
    wait_until(lambda: lines("ready"))
    run("scancel", job)
    wait_until(lambda: not state(job))
    assert len(lines("starts")) == 1
    assert "TERM" in lines("signals")[0]
    assert "cancelled, so not started again" in Path(f"unetflow-{job}.log").read_text()


@pytest.mark.slow
def test_a_walltime_ends_a_real_run_and_the_queue_starts_it_again_until_it_is_done(
    tmp_path: Path, slurm: Path, cluster_file: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No hand is laid on it: the driver's own deadline, SLURM's two minutes, and the same command goes on."""
    import test_stages

    project_folder = test_stages.make_local(tmp_path / "local")
    (tmp_path / "slow").touch()
    monkeypatch.chdir(project_folder)
    file = cluster_file(1, options='worker_extra_args = ["--preload", "slow_blocks"]')
    words = ("segment", "raw.zarr", "--out", "slow.zarr", "--cluster", str(file))
    job = run(
        "sbatch", "--parsable", "--time=2", "--mem=100M", "--cpus-per-task=1", "--signal=B:USR1@1", str(SCRIPT), *words,
        env={**os.environ, "SLOW_WHILE": str(tmp_path / "slow")},
    ).strip()  # fmt: skip
    wait_until(lambda: state(job) == "PENDING" and "Restarts=1" in run("scontrol", "show", "job", job), 300)
    (tmp_path / "slow").unlink()
    wait_until(lambda: not state(job), 900)
    told = Path(f"unetflow-{job}.log").read_text()
    assert "SLURM starts this job again" in told
    assert "ExitCode=0:0" in run("scontrol", "show", "job", job), told
    assert "Restarts=0" not in run("scontrol", "show", "job", job)
    tree = test_stages.project.tree
    assert tree(project_folder / "slow.zarr") == tree(project_folder / "out.zarr")
