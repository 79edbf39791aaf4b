"""From a cluster file's options to the job script of a worker, for each queue; nothing in it runs by accident."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unetflow.errors import InputError
from unetflow.runtime.clusterfile import ClusterSpec
from unetflow.runtime.security import LOOPBACK, listening_options, run_security
from unetflow.runtime.walltime import JOB_END, LAST_START, WorkerTimes, parse_walltime, worker_times

# A newline starts a directive of its own, the others run a command.
FORBIDDEN = re.compile(r"[\n\r\0`]|\$\(")
# Words of a directive, where quotes mean nothing.
ONE_WORD = ("queue", "account", "project", "walltime", "job_name", "interface")
PRELOAD = "unetflow.runtime.jobworker"
# The number of the job, whatever the queue; and one file a job, with host and number in its name.
_JOB = '"${SLURM_JOB_ID:-${PBS_JOBID:-${LSB_JOBID:-${JOB_ID:-0}}}}"'


def log_folder_of(options: Mapping[str, Any], log_folder: str | None) -> Path | None:
    """Return where the jobs' logs go: as the cluster file says, else ``log_folder``; None where nobody says."""
    folder = options.get("log_directory", log_folder)
    return None if folder is None else Path(os.path.expandvars(folder)).expanduser().absolute()


def job_options(spec: ClusterSpec, log_folder: str | None, environ: Mapping[str, str]) -> dict[str, Any]:
    """Turn a cluster file's options into dask-jobqueue's.

    Parameters
    ----------
    log_folder : str, optional
        Where the jobs' logs go unless ``options.log_directory`` says otherwise.
    environ : mapping
        Variables of the jobs.

    Examples
    --------
    >>> spec = ClusterSpec("slurm", options={"cores": 8, "memory": "32GB", "walltime": "4:00:00"})
    >>> job_options(spec, None, {})["job_cpu"]
    8
    """
    options = dict(spec.options)
    for key, value in options.items():
        _refuse_unsafe(key, value)
    if options.pop("processes", 1) != 1:
        raise InputError("a job must be one worker process, or a dead job is never replaced; leave out processes")
    for key in ("cores", "memory", "walltime"):
        if key not in options:
            raise InputError(f"cluster kind '{spec.kind}' needs options.{key} of one job; add it to the cluster file")
    cores, gpus = int(options.pop("cores")), int(options.pop("gpus", 0))
    if gpus not in (0, 1):
        raise InputError(f"options.gpus must be 0 or 1, got {gpus}: a job is one worker with one GPU; raise workers")
    options["walltime"] = str(options["walltime"])
    times = worker_times(parse_walltime(spec.kind, options["walltime"]), spec.margin)
    folder = log_folder_of(options, log_folder)
    options.pop("log_directory", None)
    directives = [*_gpu_directives(spec.kind, gpus), *options.pop("job_extra_directives", [])]
    arguments = [*_worker_arguments(times, gpus), *options.pop("worker_extra_args", [])]
    prologue = [*_prologue(times, environ), *options.pop("job_script_prologue", [])]
    result = {
        # One task at a time, on all cores of the job: the queue is asked for `cores`, Dask for 1.
        **_cores_of(spec.kind, cores, gpus, options),
        **options,
        "cores": 1,
        "processes": 1,
        "worker_extra_args": arguments,
        "scheduler_options": {
            "dashboard": spec.dashboard,
            **listening_options(options.get("interface"), options.get("scheduler_options", {})),
        },
    }
    if folder is not None:
        _refuse_unsafe("log_directory", str(folder))  # the run's folder may have such a name
        folder.mkdir(parents=True, exist_ok=True)
        _send_output(spec.kind, folder, result, directives, prologue)
        # The keys, files of mode 0600, must lie where the jobs can read them.
        result.setdefault("shared_temp_directory", str(folder))
    if spec.security:
        result["security"] = run_security()
        result.setdefault("shared_temp_directory", os.getcwd())
    for key in ("local_directory", "python"):
        if key in result:
            result[key] = double_quoted(str(result[key]))
    return {**result, "job_extra_directives": directives, "job_script_prologue": prologue}


def double_quoted(value: str) -> str:
    r"""Spell a value as one word of a shell line in which ``$NAME`` still means the variable.

    Examples
    --------
    >>> print(double_quoted('/my "scratch"/$USER'))
    "/my \"scratch\"/$USER"
    """
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _prologue(times: WorkerTimes, environ: Mapping[str, str]) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environ.items()]
    # By the clock, so that neither the modules that are loaded nor a restart of the worker count.
    last = f"$(( $(date +%s) + {int(times.last_start)} )) {times.stagger:.0f}"
    # The driver's own end, which its jobs inherit, is none of the worker's.
    return [*lines, f'export {LAST_START}="{last}"', f"unset {JOB_END}"]


def _worker_arguments(times: WorkerTimes, gpus: int) -> list[str]:
    """Return what the worker's command line says beside dask-jobqueue's."""
    arguments = ["--preload", PRELOAD, "--no-dashboard", "--dashboard-address", f"{LOOPBACK}:0"]
    arguments += ["--lifetime", f"{times.lifetime:.0f}s", "--lifetime-stagger", f"{times.stagger:.0f}s"]
    return [*arguments, "--resources", f"GPU={gpus}"] if gpus else arguments


def _cores_of(kind: str, cores: int, gpus: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the queue for the cores of one job in its own words."""
    if kind == "slurm":
        return {"job_cpu": cores}
    if kind == "lsf":
        return {"ncpus": cores}
    if kind == "pbs":
        memory = str(options["memory"]).replace(" ", "")
        ngpus = f":ngpus={gpus}" if gpus else ""
        return {"resource_spec": f"select=1:ncpus={cores}{ngpus}:mem={memory}"}
    return {}  # SGE: the name of the parallel environment is the site's, see cluster/sge.toml


def _gpu_directives(kind: str, gpus: int) -> list[str]:
    """Ask the queue for the GPU of one job in its own words; PBS takes it with the cores."""
    if not gpus or kind == "pbs":
        return []
    return [{"slurm": f"--gres=gpu:{gpus}", "lsf": f"-gpu num={gpus}", "sge": f"-l gpu={gpus}"}[kind]]


def _send_output(kind: str, folder: Path, result: dict[str, Any], directives: list[str], prologue: list[str]) -> None:
    """Have each job write to one file, with host and job number in its name."""
    if kind == "slurm":
        # Named to SLURM itself, which writes its own last words there too.
        result["job_directives_skip"] = ["-e ", "-o ", *result.get("job_directives_skip", [])]
        directives += [f"--output={double_quoted(f'{folder}/worker-%N-%j.log')}", "--open-mode=append"]
        return
    if re.search(r"\s", str(folder)):
        raise InputError(f"logs of {kind} jobs need a folder without blanks, got '{folder}'; set options.log_directory")
    result["log_directory"] = str(folder)  # what comes before the next line, and the queue's own words
    prologue.insert(0, f'exec >> {double_quoted(f"{folder}/worker-")}"$(hostname -s)-"{_JOB}.log 2>&1')


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
    elif isinstance(value, str) and key in ONE_WORD and re.search(r"\s", value.strip()):
        raise InputError(f"options.{key} is one word of a job script and may hold no blank, got {value!r}")
