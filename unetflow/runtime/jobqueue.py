"""Workers as jobs of SLURM, PBS, LSF or SGE, by dask-jobqueue.

What dask-jobqueue 0.9.0 does not do by itself, and is done here: it pastes options unquoted
into a shell script, listens on every interface without TLS, and replaces a dead job only when
a job is one worker process and the cluster is adaptive.
"""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError
from unetflow.runtime.clusterfile import ClusterSpec

if TYPE_CHECKING:
    from dask_jobqueue.core import Job, JobQueueCluster

CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub", "sge": "qsub"}
# A newline starts a directive of its own, the others run a command.
FORBIDDEN = re.compile(r"[\n\r\0`]|\$\(")
# Pasted as words of a command line: a blank would cut them in two.
ONE_WORD = ("local_directory", "python", "log_directory", "shared_temp_directory", "name", "job_name")


def start_jobqueue(
    spec: ClusterSpec, stack: ExitStack, log_folder: str | None, environ: Mapping[str, str]
) -> JobQueueCluster:
    """Start a scheduler in this process and ask the queue for workers.

    Parameters
    ----------
    spec : ClusterSpec
        Kind "slurm", "pbs", "lsf" or "sge"; ``options.cores`` and ``options.memory`` are those
        of one job, which is one worker that runs one task at a time with that many threads.
    stack : ExitStack
        Closes the cluster, and with it every job, pending or running.
    log_folder : str, optional
        Where the jobs' logs go unless ``options.log_directory`` says otherwise.
    environ : mapping
        Variables of the jobs.

    Raises
    ------
    InputError
        When dask-jobqueue or the queue's command is missing, or an option is unsafe or unknown.
    """
    if shutil.which(SUBMIT[spec.kind]) is None:
        raise InputError(
            f"cluster kind '{spec.kind}' needs the command {SUBMIT[spec.kind]} on this host, which has "
            "none; run on a submit host, or use --cluster local"
        )
    cluster = make_jobqueue(spec, log_folder, environ)
    stack.callback(cluster.close)
    least, most = spec.worker_range or (1, 1)
    cluster.adapt(minimum_jobs=least, maximum_jobs=most)
    return cluster


def make_jobqueue(spec: ClusterSpec, log_folder: str | None, environ: Mapping[str, str]) -> JobQueueCluster:
    """Make the cluster, without a job yet; ``rejections`` will hold what the queue refuses and why."""
    try:
        import dask_jobqueue
    except ImportError as error:
        raise InputError(
            f"cluster kind '{spec.kind}' needs dask-jobqueue, which is missing; pip install 'unetflow[hpc]'"
        ) from error
    options = job_options(spec, log_folder, environ)
    make = getattr(dask_jobqueue, CLASSES[spec.kind])
    rejections: list[str] = []
    try:
        cluster: JobQueueCluster = make(job_cls=_telling(make.job_cls, rejections), **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"cluster kind '{spec.kind}' does not take these options: {error}") from error
    cluster.rejections = rejections  # type: ignore[attr-defined]
    return cluster


def _telling(job_cls: type[Job], rejections: list[str]) -> type[Job]:
    """Keep what the queue said to a job that it refused: Dask only logs it."""
    from distributed.core import Status

    class TellingJob(job_cls):  # type: ignore[valid-type,misc]
        async def _submit_job(self, script: str) -> Any:
            try:
                return await super()._submit_job(script)
            except Exception as error:
                self.status = Status.failed  # or closing the cluster fails too
                rejections.append(str(error))
                raise

    return TellingJob


def job_options(spec: ClusterSpec, log_folder: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """Turn a cluster file's options into dask-jobqueue's.

    Examples
    --------
    >>> spec = ClusterSpec("slurm", options={"cores": 8, "memory": "32GB"})
    >>> job_options(spec, None, {})["job_cpu"]
    8
    """
    options = dict(spec.options)
    for key, value in options.items():
        _refuse_unsafe(key, value)
    if options.pop("processes", 1) != 1:
        raise InputError("a job must be one worker process, or a dead job is never replaced; leave out processes")
    for key in ("cores", "memory"):
        if key not in options:
            raise InputError(f"cluster kind '{spec.kind}' needs options.{key} of one job; add it to the cluster file")
    cores = int(options.pop("cores"))
    prologue = [f"export {name}={shlex.quote(value)}" for name, value in environ.items()]
    scheduler = {"dashboard_address": "127.0.0.1:0", "dashboard": spec.dashboard}
    logs = options.pop("log_directory", log_folder)
    result = {
        # One task at a time, on all cores of the job: the queue is asked for `cores`, Dask for 1.
        **_cores_of(spec.kind, cores, options),
        **options,
        "cores": 1,
        "processes": 1,
        "job_script_prologue": [*prologue, *options.get("job_script_prologue", [])],
        "scheduler_options": {**scheduler, **options.get("scheduler_options", {})},
    }
    if logs is not None:
        Path(logs).mkdir(parents=True, exist_ok=True)
        result["log_directory"] = str(logs)
        # The keys, files of mode 0600, must lie where the jobs can read them.
        result.setdefault("shared_temp_directory", str(Path(logs).resolve()))
    if spec.security:
        from distributed.security import Security

        result["security"] = Security.temporary()
    return {key: _one_word(key, value) for key, value in result.items()}


def _cores_of(kind: str, cores: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the queue for the cores of one job in its own words."""
    if kind == "slurm":
        return {"job_cpu": cores}
    if kind == "lsf":
        return {"ncpus": cores}
    if kind == "pbs":
        memory = str(options["memory"]).replace(" ", "")
        return {"resource_spec": f"select=1:ncpus={cores}:mem={memory}"}
    return {}  # SGE: the name of the parallel environment is the site's, see cluster/sge.toml


def _refuse_unsafe(key: str, value: Any) -> None:
    """Refuse what would run as a command, or become a directive, in the job script."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            _refuse_unsafe(f"{key}.{name}", item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_unsafe(key, item)
    elif isinstance(value, str) and FORBIDDEN.search(value):
        raise InputError(
            f"options.{key} is pasted into a job script and may hold no newline, backquote or $(, got "
            f"{value!r}; put such lines into a script of your own and source it"
        )


def _one_word(key: str, value: Any) -> Any:
    """Refuse a blank where a blank would break the script."""
    if key in ONE_WORD and isinstance(value, str) and re.search(r"\s", value):
        raise InputError(f"options.{key} is pasted into a job script and may hold no blank, got {value!r}")
    return value
