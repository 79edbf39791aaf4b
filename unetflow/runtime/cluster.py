"""Open a Dask client: on this machine, on its GPUs, on a queue's jobs, or on a running scheduler."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError, Interrupted
from unetflow.runtime.arrival import wait_for_worker
from unetflow.runtime.clusterfile import ClusterSpec, read_cluster
from unetflow.runtime.environment import (
    ALLOCATOR,
    THREAD_VARIABLES,
    as_environment,
    dask_settings,
    is_verbose,
    lend_environment,
    quieten,
    start_resource_tracker,
)
from unetflow.runtime.nannies import watch_nannies
from unetflow.runtime.security import LOOPBACK, run_security, security_of_files
from unetflow.runtime.worker import LOG_FOLDER

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0


@contextmanager
def open_client(
    cluster: str = "local",
    *,
    workers: str | int | None = None,
    threads: int | None = None,
    log_folder: str | os.PathLike[str] | None = None,
    options: Mapping[str, Any] | None = None,
    local_workers: int | None = None,
) -> Iterator[Client | None]:
    """Open a client, and close whatever was started for it.

    Parameters
    ----------
    cluster : str
        "none" (yields None: everything runs in this process), a name of ``cluster/``, the path
        of such a file, ``tcp://`` or ``tls://``, or a scheduler file (``.json``).
    workers : str or int, optional
        ``N`` or ``N:M``; by default the cluster file's number, else one per core (local), per
        device (cuda) or one job.
    threads : int, optional
        Threads that each worker computes with; by default the cores divided by the workers.
    log_folder : path, optional
        Where workers log their warnings.
    options : mapping, optional
        What wins over the cluster file: its keys, or options of its kind.
    local_workers : int, optional
        Worker processes of a local cluster where nobody says how many; absent: one per core.

    Yields
    ------
    distributed.Client or None
        At least one worker is there.

    Raises
    ------
    InputError
        When the cluster is unknown, cannot start, or runs another version of unetflow.
    Interrupted
        When a signal arrives while the first worker is waited for.
    """
    if cluster == "none":
        yield None
        return
    given = {"workers": workers, "threads": threads}
    spec = read_cluster(cluster, {**(options or {}), **{k: v for k, v in given.items() if v is not None}})
    if spec.kind == "local" and spec.workers is None:
        spec = replace(spec, workers=local_workers)
    logs = None if log_folder is None else os.path.abspath(os.fspath(log_folder))
    with ExitStack() as stack:
        quieten(stack)
        client = _start(spec, stack, logs)
        wait_for_worker(client, spec, logs)
        if spec.kind != "local":
            from unetflow.runtime.check import refuse_skew

            refuse_skew(client)
        yield client


def _start(spec: ClusterSpec, stack: ExitStack, logs: str | None) -> Client:
    """Start or find the cluster, and connect; ``stack`` closes both."""
    import dask
    from distributed import Client

    if spec.kind == "address":
        return _connect(spec, stack)
    threads = spec.threads or _threads_of(spec)
    environ = {name: str(threads) for name in THREAD_VARIABLES} | ALLOCATOR
    start = {"local": _start_local, "cuda": _start_cuda}.get(spec.kind)
    settings = dask_settings(spec.dashboard)
    if start is not None:
        # Nannies bring lost workers back. A cluster that gives a worker up meanwhile takes its nanny
        # away for good, and after a few deaths nobody is left.
        settings["distributed.deploy.lost-worker-timeout"] = "30 days"
    stack.enter_context(dask.config.set(settings))
    if start is not None:
        # dask-cuda gives each worker an environment of its own, but lets it inherit this one.
        lend_environment(stack, {**environ, **({LOG_FOLDER: logs} if logs else {})})
        cluster = start(spec, stack, logs)
        watch_nannies(cluster)
    else:
        from unetflow.runtime.jobqueue import start_jobqueue

        # The workers' own processes read Dask's settings from their environment.
        cluster = start_jobqueue(spec, stack, logs, {**environ, **as_environment(settings)})
    client = Client(cluster, set_as_default=False)
    stack.callback(client.close, timeout=CLOSE_SECONDS)
    if spec.dashboard:
        logger.info("dashboard: %s", cluster.dashboard_link)
    return client


def _start_local(spec: ClusterSpec, stack: ExitStack, logs: str | None) -> Any:
    """Start worker processes on this machine, each with its share of the memory."""
    from distributed import LocalCluster
    from distributed.system import MEMORY_LIMIT

    n_workers = _n_local_workers(spec)
    start_resource_tracker()
    options = {**_on_loopback(spec, logs), "memory_limit": int(MEMORY_LIMIT / n_workers), **spec.options}
    try:
        cluster = LocalCluster(n_workers=n_workers, **options)
    except RuntimeError as error:  # a worker that was killed before it was there
        raise Interrupted(f"the workers of this machine did not start ({error}); the same command goes on") from error
    stack.callback(cluster.close, timeout=CLOSE_SECONDS)
    stack.push(lambda kind, *_: _kill_workers(cluster) if kind else None)
    return cluster


def _start_cuda(spec: ClusterSpec, stack: ExitStack, logs: str | None) -> Any:
    """Start one worker for each GPU of this machine, by dask-cuda."""
    try:
        from dask_cuda import LocalCUDACluster

        # torch keeps its own memory pool: Dask spills nothing from the device.
        cluster = LocalCUDACluster(
            **{
                "n_workers": spec.worker_range[1] if spec.worker_range else None,
                "device_memory_limit": 0,
                "resources": {"GPU": 1},
                **_on_loopback(spec, logs),
                **spec.options,
            }
        )
    except ImportError as error:
        raise InputError(
            f"cluster kind 'cuda' needs dask-cuda, which cannot be imported ({error}); "
            "pip install 'unetflow[cuda]', or use --cluster local"
        ) from error
    except Exception as error:
        if type(error).__name__.startswith("NVMLError"):
            raise InputError(
                f"cluster kind 'cuda' needs an NVIDIA driver, and this host has none ({error}); use --cluster local"
            ) from error
        raise
    stack.callback(cluster.close, timeout=CLOSE_SECONDS)
    return cluster


def _kill_workers(cluster: Any) -> None:
    """End the workers at once: after an error nobody wants the blocks that still run."""
    for nanny in cluster.workers.values():
        with suppress(ProcessLookupError, TypeError):
            os.kill(nanny.pid, signal.SIGKILL)


def _on_loopback(spec: ClusterSpec, logs: str | None) -> dict[str, Any]:
    """Return what every cluster on this machine has: loopback, TLS, one task thread a worker."""
    return {
        "host": LOOPBACK,
        "protocol": "tls" if spec.security else "tcp",
        "security": run_security() if spec.security else None,
        "threads_per_worker": 1,
        "dashboard_address": f"{LOOPBACK}:0",
        "scheduler_kwargs": {"dashboard": spec.dashboard},
        "silence_logs": logging.WARNING if is_verbose() else logging.CRITICAL,
        "preload": ["unetflow.runtime.worker"],
        "env": {"NUMBA_NUM_THREADS": os.environ["OMP_NUM_THREADS"]},
    }


def _connect(spec: ClusterSpec, stack: ExitStack) -> Client:
    """Connect to a scheduler that somebody else started."""
    from distributed import Client

    where = spec.address or spec.scheduler_file
    try:
        client = Client(
            spec.address,
            scheduler_file=None if spec.address else spec.scheduler_file,
            security=security_of_files(spec.tls),
            set_as_default=False,
            timeout=min(30.0, spec.startup_timeout),
        )
    except (OSError, TimeoutError, ValueError, TypeError) as error:
        raise InputError(f"a Dask scheduler must answer at {where}, and none does: {error}") from error
    stack.callback(client.close, timeout=CLOSE_SECONDS)
    return client


def _n_local_workers(spec: ClusterSpec) -> int:
    from dask.system import CPU_COUNT

    return spec.worker_range[1] if spec.worker_range else int(CPU_COUNT)


def _threads_of(spec: ClusterSpec) -> int:
    """Divide the cores among the workers; a job's worker has all cores of its job."""
    from dask.system import CPU_COUNT

    if spec.kind == "local":
        return max(1, int(CPU_COUNT) // _n_local_workers(spec))
    if spec.kind == "cuda":
        return max(1, int(CPU_COUNT) // (spec.worker_range or (1, 1))[1])
    return int(spec.options.get("cores", 1))
