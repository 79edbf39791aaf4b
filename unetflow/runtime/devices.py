"""Keep processor work off the workers that hold a GPU, in clusters that have both kinds.

A worker says that it has a GPU by Dask's resource ``GPU``: those of `cuda.toml` and of jobs with
``gpus = 1`` do, and ``dask worker --resources GPU=1`` does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed import Client

RESOURCE = "GPU"
REFRESH_SECONDS = 1.0


def for_stage(client: Client, *, wants_gpu: bool) -> Any:
    """Return a client that uses the fitting workers alone; the same one where all are of one kind."""
    kinds = {bool(w["resources"].get(RESOURCE)) for w in _workers(client).values()}
    return Fitting(client, has_gpu=wants_gpu) if len(kinds) == 2 else client


class Fitting:
    """A client that sees and uses only workers with, or only workers without, a GPU; else as the one inside."""

    def __init__(self, client: Client, *, has_gpu: bool) -> None:
        self._client, self._has_gpu = client, has_gpu
        self._threads: dict[str, int] = {}
        self._looked_at = float("-inf")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def nthreads(self) -> dict[str, int]:
        """Return the threads of each fitting worker, by address."""
        self._looked_at = time.monotonic()
        self._threads = {address: int(w["nthreads"]) for address, w in self._fitting().items()}
        return self._threads

    def scheduler_info(self, n_workers: int = -1) -> dict[str, Any]:
        """Describe the scheduler with its fitting workers."""
        return {**self._client.scheduler_info(n_workers=n_workers), "workers": self._fitting()}

    def submit(self, fn: Callable[..., Any], *args: Any, workers: Sequence[str] = (), **options: Any) -> Any:
        """Send a task to the workers that are named and fit, else to any that fits."""
        if time.monotonic() - self._looked_at > REFRESH_SECONDS:
            self.nthreads()
        fitting = [w for w in workers if w in self._threads] or list(self._threads)
        return self._client.submit(fn, *args, workers=fitting, **{**options, "allow_other_workers": False})

    def _fitting(self) -> dict[str, Any]:
        workers = _workers(self._client)
        return {a: w for a, w in workers.items() if bool(w["resources"].get(RESOURCE)) == self._has_gpu}


def _workers(client: Client) -> dict[str, Any]:
    return dict(client.scheduler_info(n_workers=-1)["workers"])
