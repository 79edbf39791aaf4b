"""What goes into a job script, and what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from unetflow.errors import InputError
from unetflow.runtime.clusterfile import ClusterSpec, read_cluster
from unetflow.runtime.jobqueue import job_options, start_jobqueue

JOB = {"cores": 8, "memory": "32GB"}


def options(kind: str = "slurm", **more: Any) -> dict[str, Any]:
    return job_options(ClusterSpec(kind, security=False, options={**JOB, **more}), None, {"OMP_NUM_THREADS": "8"})


@pytest.mark.parametrize(
    "value",
    ["a\nb", "`touch x`", "$(touch x)", "a\r#SBATCH --uid=0", "a\0b"],
)
@pytest.mark.parametrize("key", ["queue", "account", "walltime", "memory", "anything"])
def test_what_would_run_as_a_command_is_refused(key: str, value: str) -> None:
    with pytest.raises(InputError, match=f"options.{key} is pasted into a job script"):
        options(**{key: value})


def test_lists_and_tables_are_looked_through() -> None:
    with pytest.raises(InputError, match="job_extra_directives"):
        options(job_extra_directives=["--ok", "$(bad)"])
    with pytest.raises(InputError, match=r"scheduler_options.host"):
        options(scheduler_options={"host": "`bad`"})


def test_a_blank_in_a_path_is_refused() -> None:
    with pytest.raises(InputError, match="may hold no blank"):
        options(local_directory="/my scratch")


def test_a_job_is_one_worker_with_one_task_and_all_cores() -> None:
    made = options()
    assert (made["cores"], made["processes"], made["job_cpu"]) == (1, 1, 8)
    assert made["job_script_prologue"] == ["export OMP_NUM_THREADS=8"]
    with pytest.raises(InputError, match="one worker process"):
        options(processes=2)
    assert options("lsf")["ncpus"] == 8
    assert options("pbs")["resource_spec"] == "select=1:ncpus=8:mem=32GB"


@pytest.mark.parametrize("missing", ["cores", "memory"])
def test_cores_and_memory_must_be_said(missing: str) -> None:
    spec = ClusterSpec("slurm", options={k: v for k, v in JOB.items() if k != missing})
    with pytest.raises(InputError, match=f"needs options.{missing}"):
        job_options(spec, None, {})


def test_dashboard_listens_on_loopback_and_links_are_encrypted(tmp_path: Path) -> None:
    made = job_options(ClusterSpec("slurm", options=JOB), str(tmp_path / "logs"), {})
    assert made["scheduler_options"]["dashboard_address"].startswith("127.0.0.1:")
    assert made["security"].require_encryption
    assert made["log_directory"] == made["shared_temp_directory"] == str(tmp_path / "logs")


@pytest.mark.parametrize(
    ("kind", "directives"),
    [
        ("slurm", ["#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH --no-requeue"]),
        ("pbs", ["#PBS -l select=1:ncpus=8:mem=32GB", "#PBS -l walltime=04:00:00"]),
        ("lsf", ["#BSUB -n 8", "#BSUB -W 04:00"]),
        ("sge", ["#$ -pe smp 8", "#$ -l h_vmem=4G"]),
    ],
)
def test_the_files_of_the_repository_make_the_right_job_script(kind: str, directives: list[str]) -> None:
    import dask_jobqueue

    made = job_options(read_cluster(kind, {"security": False}), None, {"OMP_NUM_THREADS": "8"})
    made.pop("scheduler_options")
    job = getattr(dask_jobqueue, f"{kind.upper()}Cluster").job_cls("tls://host:1", name="w", **made)
    script = job.job_script()
    for line in [*directives, "export OMP_NUM_THREADS=8"]:
        assert line in script.splitlines()
    assert "--nthreads 1 " in script


def test_a_missing_queue_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import ExitStack

    monkeypatch.setenv("PATH", "")
    with ExitStack() as stack, pytest.raises(InputError, match="needs the command sbatch"):
        start_jobqueue(ClusterSpec("slurm", options=JOB), stack, None, {})
