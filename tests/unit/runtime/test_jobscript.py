"""What goes into a job script, and what does not."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from unetflow.errors import InputError
from unetflow.runtime.clusterfile import ClusterSpec, read_cluster
from unetflow.runtime.jobqueue import start_jobqueue, telling_job
from unetflow.runtime.jobscript import job_options, log_folder_of

JOB = {"cores": 8, "memory": "32GB", "walltime": "04:00"}


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


def test_a_blank_is_quoted_in_a_path_and_refused_in_a_word(tmp_path: Path) -> None:
    assert "--local-directory \"/my scratch/$USER\" " in script(options(local_directory="/my scratch/$USER"))
    made = job_options(ClusterSpec("slurm", options=JOB), str(tmp_path / "my logs"), {})
    text = script(made)
    assert f'#SBATCH --output="{tmp_path}/my logs/worker-%N-%j.log"' in text
    assert f'--tls-key "{tmp_path}/my logs/' in text
    with pytest.raises(InputError, match=r"options.queue is one word .* may hold no blank"):
        options(queue="my queue")
    with pytest.raises(InputError, match="without blanks"):
        job_options(ClusterSpec("lsf", options=JOB), str(tmp_path / "my logs"), {})


def test_a_folder_with_a_command_in_its_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"log_directory is pasted into a job script"):
        job_options(ClusterSpec("slurm", options=JOB), str(tmp_path / "$(touch x)"), {})


@pytest.mark.parametrize("kind", ["lsf", "pbs", "sge"])
def test_what_folder_and_variables_hold_is_text_for_the_shell(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / 'a";>canary;"'
    value = 'b"; touch canary; $HOME'
    made = job_options(ClusterSpec(kind, security=False, options=JOB), str(folder), {"A": value})
    code = "\n".join([*made["job_script_prologue"], 'echo "$A"'])
    subprocess.run(["sh", "-c", code], cwd=tmp_path, check=True)
    assert not list(tmp_path.rglob("canary"))
    [log] = folder.glob("worker-*.log")
    assert log.read_text() == f"{value}\n"


def script(made: dict[str, Any], kind: str = "slurm") -> str:
    """Return the script of a job, as the queue gets it."""
    import dask_jobqueue

    make = getattr(dask_jobqueue, f"{kind.upper()}Cluster")
    taken = {k: v for k, v in made.items() if k not in ("scheduler_options", "shared_temp_directory", "security")}
    security = made.get("security")
    if security is not None:
        from distributed.security import Security

        folder = made["shared_temp_directory"]
        files = {"tls_ca_file": f"{folder}/ca", "tls_worker_cert": f"{folder}/cert", "tls_worker_key": f"{folder}/key"}
        taken["security"] = Security(require_encryption=True, **files)
    return str(telling_job(make.job_cls, [])("tls://host:1", name="w", **taken).job_script())


def test_a_job_is_one_worker_with_one_task_and_all_cores() -> None:
    made = options()
    assert (made["cores"], made["processes"], made["job_cpu"]) == (1, 1, 8)
    assert made["job_script_prologue"][0] == "export OMP_NUM_THREADS=8"
    with pytest.raises(InputError, match="one worker process"):
        options(processes=2)
    assert options("lsf")["ncpus"] == 8
    assert options("pbs")["resource_spec"] == "select=1:ncpus=8:mem=32GB"


def test_a_worker_begins_no_block_that_its_job_would_not_outlive() -> None:
    text = script(options(walltime="4:00:00"))
    assert f'export UNETFLOW_LAST_START="$(( $(date +%s) + {4 * 3600 - 300} )) 50"' in text
    assert "--lifetime 14300s --lifetime-stagger 50s" in text
    assert "--preload unetflow.runtime.jobworker " in text
    spec = ClusterSpec("slurm", security=False, margin=1000.0, options={**JOB, "walltime": "4:00:00"})
    assert f"+ {4 * 3600 - 1000} )) 167" in script(job_options(spec, None, {}))
    with pytest.raises(InputError, match="margin must be shorter than the walltime"):
        job_options(ClusterSpec("slurm", margin=300.0, options={**JOB, "walltime": "5"}), None, {})


def test_a_user_s_own_lines_come_after_ours_and_are_kept() -> None:
    made = options(
        job_script_prologue=["module load x"],
        worker_extra_args=["--preload", "mine"],
        job_extra_directives=["--qos=low"],
        job_directives_skip=["--mem"],
    )
    text = script(made)
    assert text.index("OMP_NUM_THREADS") < text.index("module load x") < text.index("dask_worker")
    assert "--preload mine" in text
    assert "#SBATCH --qos=low" in text
    assert "#SBATCH --mem" not in text


@pytest.mark.parametrize("gpus", [2, -1])
def test_a_job_has_one_gpu_or_none(gpus: int) -> None:
    with pytest.raises(InputError, match="a job is one worker with one GPU"):
        options(gpus=gpus)


@pytest.mark.parametrize("missing", ["cores", "memory", "walltime"])
def test_cores_memory_and_walltime_must_be_said(missing: str) -> None:
    spec = ClusterSpec("slurm", options={k: v for k, v in JOB.items() if k != missing})
    with pytest.raises(InputError, match=f"needs options.{missing}"):
        job_options(spec, None, {})


def test_links_are_encrypted_and_one_address_is_listened_on(tmp_path: Path) -> None:
    made = job_options(ClusterSpec("slurm", options=JOB), str(tmp_path / "logs"), {})
    assert made["scheduler_options"]["dashboard_address"].startswith("127.0.0.1:")
    assert made["scheduler_options"]["host"] not in ("", "0.0.0.0")
    assert made["security"].require_encryption
    assert made["shared_temp_directory"] == str(tmp_path / "logs")
    assert "host" not in options(interface="ib0")["scheduler_options"]


@pytest.mark.parametrize(
    ("name", "directives", "arguments"),
    [
        ("slurm", ["#SBATCH --cpus-per-task=8", "#SBATCH --mem=30G", "#SBATCH -t 04:00:00"], ""),
        ("slurm-gpu", ["#SBATCH --cpus-per-task=8", "#SBATCH --gres=gpu:1", "#SBATCH --no-requeue"], "GPU=1"),
        ("pbs", ["#PBS -l select=1:ncpus=8:mem=32GB", "#PBS -l walltime=04:00:00", "#PBS -r n"], ""),
        ("pbs-gpu", ["#PBS -l select=1:ncpus=8:ngpus=1:mem=64GB", "#PBS -l walltime=04:00:00", "#PBS -r n"], "GPU=1"),
        ("lsf", ["#BSUB -n 8", "#BSUB -W 04:00", "#BSUB -M 32000", "#BSUB -rn"], ""),
        ("lsf-gpu", ["#BSUB -n 8", "#BSUB -W 04:00", "#BSUB -gpu num=1", "#BSUB -rn"], "GPU=1"),
        ("sge", ["#$ -pe smp 8", "#$ -l h_vmem=4G", "#$ -l h_rt=04:00:00", "#$ -r n"], ""),
    ],
)
def test_the_files_of_the_repository_make_the_right_job_script(
    name: str, directives: list[str], arguments: str, tmp_path: Path
) -> None:
    spec = read_cluster(name, {"security": False})
    text = script(job_options(spec, str(tmp_path), {"OMP_NUM_THREADS": "8"}), spec.kind)
    for line in [*directives, "export OMP_NUM_THREADS=8"]:
        assert line in text.splitlines(), text
    assert "--nthreads 1 " in text
    assert ("--resources " + arguments in text) == bool(arguments)
    assert "--lifetime " in text
    assert str(tmp_path / "worker-") in text


def test_a_missing_queue_is_told_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import ExitStack

    monkeypatch.setenv("PATH", "")
    with ExitStack() as stack, pytest.raises(InputError, match="needs the command sbatch"):
        start_jobqueue(ClusterSpec("slurm", options=JOB), stack, None, {})


def test_logs_are_looked_for_where_the_jobs_write_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = log_folder_of({"log_directory": "$HOME/logs"}, None)
    assert folder == log_folder_of({}, "~/logs") == tmp_path / "logs"
    assert log_folder_of({}, None) is None
    options(log_directory="~/logs")
    assert folder.is_dir()
