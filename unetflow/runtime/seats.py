"""Which workers train, and with what: one rank a GPU where there are GPUs, else one a worker."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from unetflow.errors import Interrupted
from unetflow.runtime.rank import Place, Seat, survey_worker

if TYPE_CHECKING:
    from distributed import Client

logger = logging.getLogger(__name__)

KILL_SECONDS = 10.0  # in which a worker that was killed is gone from the scheduler's list
SURVEY_SECONDS = 120.0  # in which a worker must say what it has


def list_workers(client: Client) -> list[str]:
    """Return the addresses of the workers, those of a host together.

    Raises
    ------
    Interrupted
        When the scheduler does not answer.
    """
    if client.status not in ("running", "connecting"):
        raise Interrupted(f"the Dask client is {client.status}; the same command goes on")
    try:
        return sorted(client.nthreads())
    except Exception as error:
        raise Interrupted(f"the Dask scheduler does not answer: {error}") from error


def gather_workers(
    client: Client,
    n_wanted: int,
    patience: float,
    regather: float,
    shunned: Collection[str],
    should_stop: Callable[[], bool],
) -> list[str]:
    """Wait until ``n_wanted`` workers are there, but not longer than ``regather`` seconds once one is.

    Raises
    ------
    Interrupted
        When none is there for ``patience`` seconds, or a stop is asked for meanwhile.
    """
    began = time.monotonic()
    while True:
        found = [address for address in list_workers(client) if address not in shunned]
        waited = time.monotonic() - began
        if len(found) >= n_wanted or (found and waited > regather):
            return found
        if should_stop():
            raise Interrupted("stopped while waiting for workers; the same command goes on")
        if waited > patience:
            raise Interrupted(f"no worker was there for {patience:.0f} s; the same command goes on")
        time.sleep(0.2)


def count_coming(client: Client) -> int:
    """Return how many workers there will soon be: those that the cluster has asked for."""
    planned = getattr(client.cluster, "plan", ())
    return max(1, len(planned))


def survey(client: Client, workers: Collection[str], accelerators: bytes | None) -> dict[str, Place]:
    """Ask each worker what it has; those that do not answer are left out."""
    from distributed import KilledWorker

    futures = {
        address: client.submit(survey_worker, accelerators, workers=[address], pure=False) for address in workers
    }
    until = time.monotonic() + SURVEY_SECONDS
    while any(future.status == "pending" for future in futures.values()) and time.monotonic() < until:
        time.sleep(0.02)
        if set(futures) - set(list_workers(client)):
            break  # one is gone already
    places = {address: future.result() for address, future in futures.items() if future.status == "finished"}
    for future in futures.values():
        if future.status == "error" and not places and not isinstance(future.exception(), KilledWorker):
            future.result()  # what is wrong with all of them is said
    return places


def choose_seats(places: Mapping[str, Place], most: int) -> list[Seat]:
    """Give ranks to workers.

    Parameters
    ----------
    places : mapping of str to Place
        What each worker has, by address.
    most : int
        Largest number of ranks.

    Examples
    --------
    A GPU that two workers see serves one rank; processors are shared by the ranks of a host.

    >>> here = Place("10.0.0.1", 4, ("gpu a",))
    >>> [(s.worker, s.device) for s in choose_seats({"tcp://1": here, "tcp://2": here}, 8)]
    [('tcp://1', 0)]
    >>> there = Place("10.0.0.1", 4, ())
    >>> [(s.worker, s.threads) for s in choose_seats({"tcp://1": there, "tcp://2": there}, 1)]
    [('tcp://1', 8)]
    """
    taken: set[tuple[str, str]] = set()
    chosen: list[tuple[str, int | None]] = []
    for address, place in places.items():
        free = [n for n, name in enumerate(place.accelerators) if (place.host, name) not in taken]
        if free:
            taken.add((place.host, place.accelerators[free[0]]))
            chosen.append((address, free[0]))
    chosen = (chosen or [(address, None) for address in places])[:most]
    threads = Counter[str]()
    for place in places.values():
        threads[place.host] += place.threads
    sharing = Counter(places[address].host for address, _ in chosen)
    return [
        Seat(address, number, len(chosen), device, max(1, threads[host] // sharing[host]))
        for number, (address, device) in enumerate(chosen)
        for host in [places[address].host]
    ]


def restart(client: Client, workers: Collection[str]) -> set[str]:
    """Kill workers, for their nannies to begin them anew; return those that cannot be, to be left alone.

    A worker that is asked to restart waits for its task (distributed 2026.7.1), which may never end.
    """
    asked = set(workers) & set(list_workers(client))
    for address in asked:
        with suppress(Exception):
            client.run(kill_worker, workers=[address], nanny=True, on_error="ignore")
    until = time.monotonic() + KILL_SECONDS
    while left := asked & set(list_workers(client)):
        if time.monotonic() > until:
            logger.warning("%s cannot be ended; no rank runs there any more", ", ".join(sorted(left)))
            return left
        time.sleep(0.1)
    return set()


def kill_worker(dask_worker: Any) -> None:
    """End the process of a nanny's worker, whatever it does."""
    os.kill(dask_worker.pid, signal.SIGKILL)
