"""Try a cluster: start one worker, look at what it has and sees, and stop it.

::

    driver                                   worker
    writes RUN/.unetflow-check-X/driver ---> reads it
    reads  RUN/.unetflow-check-X/worker <--- writes it
    its clock, versions, input paths    <--> the same there
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError
from unetflow.memory import format_bytes

if TYPE_CHECKING:
    from distributed import Client

# What must be the same everywhere: messages are pickled, and bytes of the result follow from the rest.
PACKAGES = (
    "unetflow", "dask", "distributed", "cloudpickle", "numpy", "scipy", "scikit-image", "numba", "zarr", "torch",
)  # fmt: skip
MOST_SKEW = 5.0  # seconds between two clocks: locks of other hosts go stale after 60
SHARED_SECONDS = 30.0  # until a file of another host is seen; NFS remembers listings for a while
JOB_VARIABLES = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID", "JOB_ID")

Facts = dict[str, Any]


def versions() -> dict[str, str]:
    """Return the versions of Python and `PACKAGES` in this process; "missing" where one is not there."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def refuse_skew(client: Client) -> None:
    """Refuse workers with other versions than this process has.

    Raises
    ------
    InputError
        That names worker, package and both versions.
    """
    here = versions()
    for address, found in client.run(versions, on_error="return").items():
        if not isinstance(found, dict):
            raise InputError(
                f"workers must run unetflow as this process does, and {address} cannot import it ({found}); "
                "install the same environment on every host"
            )
        for name, version in here.items():
            if found.get(name) != version:
                raise InputError(
                    f"workers must have {name} {version} as this process does, and {address} has "
                    f"{found.get(name, 'none')}; install the same environment on every host"
                )


def look_at_worker(folder: str, token: str, paths: Sequence[str]) -> Facts:
    """Tell what this worker has and sees; runs on the worker."""
    from distributed import get_worker

    worker = get_worker()
    facts: Facts = {
        "host": socket.gethostname(),
        "job": next((os.environ[name] for name in JOB_VARIABLES if os.environ.get(name)), None),
        "cores": len(os.sched_getaffinity(0)),
        "threads": int(os.environ.get("OMP_NUM_THREADS") or 0) or None,
        "memory": worker.memory_manager.memory_limit,
        "resources": dict(worker.state.total_resources),
        "scratch": worker.local_directory,
        "scratch_free": shutil.disk_usage(worker.local_directory).free,
        "hidden": [path for path in paths if not os.path.exists(path)],
        **_gpus(),
    }
    place = Path(folder)
    facts["read"] = (place / "driver").read_text() if (place / "driver").exists() else None
    try:
        place.mkdir(parents=True, exist_ok=True)
        (place / "worker").write_text(token)
        facts["write_error"] = None
    except OSError as error:
        facts["write_error"] = str(error)
    return facts


def _gpus() -> Facts:
    """Return the GPUs that torch sees, and whether the host has one that it does not."""
    import torch

    seen = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"gpus": seen, "has_driver": shutil.which("nvidia-smi") is not None}


def check_cluster(
    cluster: str,
    run_folder: str | os.PathLike[str],
    *,
    options: Mapping[str, Any] | None = None,
    inputs: Sequence[str] = (),
) -> Facts:
    """Start one worker of a cluster, look at it and stop it.

    Parameters
    ----------
    cluster : str
        As for `unetflow.runtime.cluster.open_client`.
    run_folder : path
        A small folder comes into it and goes again.
    options : mapping, optional
        What wins over the cluster file.
    inputs : sequence of str
        Paths that the worker must see.

    Returns
    -------
    dict
        What was found; ``problems`` lists what a run would fail at.

    Raises
    ------
    InputError
        Where no worker comes up, or one with other versions.
    """
    from unetflow.runtime.cluster import open_client
    from unetflow.runtime.clusterfile import read_cluster

    wants_gpu = bool(read_cluster(cluster, options).options.get("gpus")) if cluster != "none" else False
    run, token = Path(run_folder).absolute(), uuid.uuid4().hex
    is_new = not run.exists()
    place = run / f".unetflow-check-{token[:8]}"
    try:
        place.mkdir(parents=True)
        (place / "driver").write_text(token)
    except OSError as error:
        raise InputError(f"the run's folder must be writable, got {run} ({error}); name another with --run") from error
    began = time.monotonic()
    try:
        with open_client(cluster, workers=1, options=options, log_folder=run / "logs") as client:
            if client is None:
                raise InputError("--cluster none starts no worker: there is nothing to check; name a cluster")
            seconds = time.monotonic() - began
            skew, doubt = _clock(client)
            address = next(iter(client.nthreads()))
            paths = [os.path.abspath(path) for path in inputs if "://" not in path]
            found = client.submit(look_at_worker, str(place), token, paths, workers=[address], pure=False).result()
            is_back = _comes_back(place / "worker", token) if found["write_error"] is None else False
            dashboard = client.dashboard_link
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if is_new:  # after an error the logs are wanted
        shutil.rmtree(run, ignore_errors=True)
    problems = problems_of(found, token, is_back=is_back, skew=skew, doubt=doubt, run=run, wants_gpu=wants_gpu)
    return {
        "cluster": cluster, "host": found["host"], "job": found["job"], "startup_seconds": round(seconds, 1),
        "cores": found["cores"], "threads": found["threads"],
        "memory": format_bytes(found["memory"]) if found["memory"] else "without limit",
        "gpus": found["gpus"] or "none", "resources": found["resources"],
        "scratch": f"{found['scratch']}, {format_bytes(found['scratch_free'])} free",
        "clock": f"{skew:+.2f} s from this host's", "dashboard": dashboard, "versions": versions(),
        "run_folder": f"{run}: read and written by the worker" if not problems else str(run),
        "problems": problems,
    }  # fmt: skip


def _clock(client: Client) -> tuple[float, float]:
    """Return how far a worker's clock is ahead, and the doubt in that, in seconds."""
    before = time.time()
    there = next(iter(client.run(time.time).values()))
    after = time.time()
    return there - (before + after) / 2, (after - before) / 2


def _comes_back(file: Path, token: str) -> bool:
    """Wait until the worker's file is seen here."""
    until = time.monotonic() + SHARED_SECONDS
    while time.monotonic() < until:
        os.listdir(file.parent)  # has NFS ask again
        if file.exists() and file.read_text() == token:
            return True
        time.sleep(0.5)
    return False


def problems_of(
    found: Facts, token: str, *, is_back: bool, skew: float, doubt: float, run: Path, wants_gpu: bool
) -> list[str]:
    """Say what a run would fail at, from what a worker found.

    Parameters
    ----------
    found : dict
        Of `look_at_worker`.
    token : str
        What the worker should have read.
    is_back : bool
        Whether what it wrote was seen here.
    skew, doubt : float
        How far its clock is ahead, and the doubt in that, in seconds.
    """
    problems = []
    if found["write_error"] is not None:
        problems.append(f"the worker on {found['host']} cannot write to {run} ({found['write_error']})")
    elif found["read"] != token or not is_back:
        problems.append(
            f"the worker on {found['host']} does not see the same files in {run} as this host; "
            "the run's folder must lie on a file system that all nodes share"
        )
    problems += [f"the worker on {found['host']} does not see {path}, which this run reads" for path in found["hidden"]]
    if abs(skew) - doubt > MOST_SKEW:
        problems.append(
            f"the clock of {found['host']} is {skew:+.0f} s from this host's; more than {MOST_SKEW:.0f} s make "
            "locks and walltimes wrong; have an administrator set the clocks (NTP)"
        )
    if wants_gpu and not found["gpus"]:
        problems.append(f"the job asked for a GPU and torch on {found['host']} sees none; is it a CPU build of torch?")
    elif found["has_driver"] and not found["gpus"]:
        problems.append(f"{found['host']} has an NVIDIA driver and torch sees no GPU; install a CUDA build of torch")
    return problems
