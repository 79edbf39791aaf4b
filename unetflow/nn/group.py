"""Ranks that train one network together: what they add up and tell one another.

    rank 0   rows 0 1 of the batch -> loss, gradient --+
                                                       +--> the sums, alike on all of them -> one step
    rank 1   rows 2 3 of the batch -> loss, gradient --+

NCCL carries it between GPUs, gloo between processors; torch finds the other ranks through a small
store that rank 0 serves.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist
from torch import Tensor

from unetflow.errors import RankLost

_JOIN_SECONDS = 120.0  # for all ranks to come to the meeting
_WAIT_SECONDS = 3600.0  # in one sum: who supervises the ranks notices a silent one long before


@dataclass(frozen=True, slots=True)
class Meeting:
    """Where the ranks find one another.

    Parameters
    ----------
    host, port : str, int
        Of rank 0's store.
    own_host : str
        The address at which this rank is reached.
    listener : socket, optional
        Rank 0's: bound to that port, and listening.
    """

    host: str
    port: int
    own_host: str
    listener: socket.socket | None = None


class Group:
    """One rank among those that train together; without a meeting it is alone.

    Parameters
    ----------
    rank, world : int
        Its number, and how many there are.
    device : torch.device
        Where the tensors are.
    wait : callable
        Told True before waiting for other ranks, False after.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
        wait: Callable[[bool], None] = lambda is_waiting: None,
    ) -> None:
        self.rank, self.world = rank, world
        self.device = device or torch.device("cpu")
        self._wait = wait

    def rows(self, n_rows: int) -> range:
        """Return this rank's rows of a batch.

        Examples
        --------
        >>> [Group(rank, 2).rows(5) for rank in range(2)]
        [range(0, 2), range(2, 5)]
        """
        return range(self.rank * n_rows // self.world, (self.rank + 1) * n_rows // self.world)

    def start_sum(self, tensor: Tensor) -> Any:
        """Begin to add a tensor up in place, in the background; `finish` waits for it."""
        with self._trouble():
            return dist.all_reduce(tensor, async_op=True) if self.world > 1 else None

    def finish(self, *sums: Any) -> None:
        """Wait for sums that were begun.

        Raises
        ------
        RankLost
            If another rank is gone.
        """
        with self._trouble():
            for one in sums:
                if one is not None:
                    one.wait()

    def sum(self, tensor: Tensor) -> Tensor:
        """Add a tensor up over the ranks, in place."""
        self.finish(self.start_sum(tensor))
        return tensor

    def gather(self, sums: Tensor) -> Tensor:
        """Return what is added up over the ranks; its gradient is that of this rank's share."""
        if self.world == 1:
            return sums
        total = self.sum(sums.detach().clone())
        return total + (sums - sums.detach())

    def tell(self, number: int) -> int:
        """Return the number that rank 0 gives."""
        return self.total(number if self.rank == 0 else 0)

    def total(self, number: int) -> int:
        """Return the sum of a number over the ranks."""
        if self.world == 1:
            return int(number)
        return int(self.sum(torch.tensor([number], dtype=torch.int64, device=self.device)))

    @contextmanager
    def _trouble(self) -> Iterator[None]:
        """Put what torch says of a lost connection into our words."""
        if self.world == 1:
            yield
            return
        self._wait(True)
        try:
            yield
        except RuntimeError as cause:
            raise RankLost(f"rank {self.rank} of {self.world} lost another rank: {_first_line(cause)}") from cause
        finally:
            self._wait(False)


@contextmanager
def join(
    rank: int, world: int, device: torch.device, meeting: Meeting | None, wait: Callable[[bool], None]
) -> Iterator[Group]:
    """Meet the other ranks, and part from them at the end, or at once when something fails.

    Raises
    ------
    RankLost
        If they do not all come.
    """
    if meeting is None or world == 1:
        yield Group(0, 1, device, wait)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    wait(True)
    try:
        with _reached_at(meeting.own_host):
            dist.init_process_group(
                "nccl" if device.type == "cuda" else "gloo",
                store=_store(rank, world, meeting),
                rank=rank,
                world_size=world,
                timeout=datetime.timedelta(seconds=_WAIT_SECONDS),
                device_id=device if device.type == "cuda" else None,
            )
    except (RuntimeError, OSError) as cause:
        _leave()
        raise RankLost(f"rank {rank} of {world} did not meet the others: {_first_line(cause)}") from cause
    finally:
        wait(False)
    try:
        yield Group(rank, world, device, wait)
    finally:
        _leave()


def _store(rank: int, world: int, meeting: Meeting) -> Any:
    """Return the store of the ranks: rank 0 serves it, on its own address only."""
    return dist.TCPStore(  # type: ignore[attr-defined]
        meeting.host,
        meeting.port,
        world,
        is_master=rank == 0,
        timeout=datetime.timedelta(seconds=_JOIN_SECONDS),
        wait_for_workers=False,
        # The store closes what it listens on: it gets a handle of its own.
        master_listen_fd=os.dup(meeting.listener.fileno()) if rank == 0 and meeting.listener else None,
    )


@contextmanager
def _reached_at(host: str) -> Iterator[None]:
    """Have gloo and NCCL use the network of this address, unless somebody has chosen one."""
    name = next((name for name, found in psutil.net_if_addrs().items() if host in {a.address for a in found}), None)
    names = [v for v in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if name is not None and v not in os.environ]
    os.environ.update({variable: str(name) for variable in names})
    try:
        yield
    finally:
        for variable in names:
            del os.environ[variable]


def _leave() -> None:
    """Close the connections: the other ranks notice at once, and a new group can be made."""
    with suppress(Exception):
        dist.destroy_process_group()


def _first_line(error: BaseException) -> str:
    """Return the first sentence of what torch says; general advice follows it."""
    return str(error).partition("\n")[0].partition(". ")[0]
