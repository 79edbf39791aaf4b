"""Workers as jobs of SLURM, PBS, LSF or SGE, by dask-jobqueue.

What dask-jobqueue 0.9.0 does not do by itself, and is done here: it pastes options unquoted
into a shell script, listens on every interface without TLS, replaces a dead job only when
a job is one worker process and the cluster is adaptive, and tells nobody what the queue said.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError
from unetflow.runtime.clusterfile import ClusterSpec
from unetflow.runtime.jobscript import double_quoted, job_options

if TYPE_CHECKING:
    from dask_jobqueue.core import Job, JobQueueCluster
    from distributed.deploy.adaptive import Adaptive

CLASSES = {"slurm": "SLURMCluster", "pbs": "PBSCluster", "lsf": "LSFCluster", "sge": "SGECluster"}
SUBMIT = {"slurm": "sbatch", "pbs": "qsub", "lsf": "bsub", "sge": "qsub"}
# Looks, one a second, before jobs are added (a pass of a few seconds needs none) or taken away.
LOOKS_UP, LOOKS_DOWN = 10, 60


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
    stack.callback(_remove_keys, cluster)
    stack.callback(cluster.close)
    least, most = spec.worker_range or (1, 1)
    cluster.adapt(Adaptive=_by_demand(), minimum_jobs=least, maximum_jobs=most, wait_count=LOOKS_DOWN)
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
        cluster: JobQueueCluster = make(job_cls=telling_job(make.job_cls, rejections), **options)
    except (ValueError, TypeError) as error:
        raise InputError(f"cluster kind '{spec.kind}' does not take these options: {error}") from error
    cluster.rejections = rejections  # type: ignore[attr-defined]
    return cluster


def _remove_keys(cluster: JobQueueCluster) -> None:
    """Remove the files of the run's certificate and key: Dask does so when it collects the cluster."""
    for name in ("ca_file", "cert", "key"):
        file = getattr(cluster, f"_job_{name}", None)
        if file is not None:
            with suppress(FileNotFoundError):
                file.close()


def telling_job(job_cls: type[Job], rejections: list[str]) -> type[Job]:
    """Keep what the queue said to a job that it refused (Dask only logs it), and quote the paths of keys."""
    from distributed.core import Status

    class TellingJob(job_cls):  # type: ignore[valid-type,misc]
        def __init__(self, *args: Any, security: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, security=None if security is None else _QuotedKeys(security), **kwargs)

        async def _submit_job(self, script: str) -> Any:
            try:
                return await super()._submit_job(script)
            except Exception as error:
                self.status = Status.failed  # or closing the cluster fails too
                rejections.append(str(error).partition("stderr:")[2].strip() or str(error))
                raise

    return TellingJob


class _QuotedKeys:
    """The files of a `Security`, spelt as words of a shell line."""

    def __init__(self, security: Any) -> None:
        self._security = security

    def get_tls_config_for_role(self, role: str) -> dict[str, Any]:
        config = self._security.get_tls_config_for_role(role)
        return {key: value if key == "ciphers" else double_quoted(str(value)) for key, value in config.items()}


def _by_demand() -> type[Adaptive]:
    """Return the rule by which jobs are added and taken away.

    Dask's own rule adds up what the known tasks will take. Here only a few tasks are in flight, however
    long the pass, so that sum stays small: as long as more tasks wait than workers are there, all
    jobs are wanted; when fewer are left than workers, only those.
    """
    from distributed.deploy.adaptive import Adaptive

    class ByDemand(Adaptive):
        wanted, n_looks, looked_at = 0, 0, 0.0

        async def target(self) -> int:
            scheduler: Any = self.cluster.scheduler  # type: ignore[attr-defined]
            n_tasks, n_workers = len(scheduler.tasks), len(scheduler.workers)
            now = time.monotonic()
            if n_tasks <= n_workers:
                self.n_looks, self.wanted = 0, n_tasks
            elif now - self.looked_at >= 1:
                self.n_looks, self.looked_at = self.n_looks + 1, now
            if self.n_looks >= LOOKS_UP:
                self.wanted = int(self.maximum)
            return max(self.wanted, min(n_workers, n_tasks))

    return ByDemand
