"""What inputs must be before a worker meets them: chunks that fit its memory, and none missing where that counts.

A chunk that is not stored is the fill value, says Zarr, and sparse volumes are made of them. It may also be a
file that was lost. So they are counted, the plan and the report tell how many, and ``missing = "refuse"`` is
for volumes that have to be whole.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.errors import InputError
from unetflow.geometry import Box
from unetflow.memory import format_bytes
from unetflow.stages.machine import memory_of_computer
from unetflow.stages.work import Conditions

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume

# Listing is a second for a hundred thousand files: above this it is done only where it decides something.
_MOST_LISTED = 1_000_000


def refuse_large_chunks(volumes: Iterable[Volume], conditions: Conditions) -> None:
    """Refuse an input whose chunk, decoded, is larger than a worker's memory: before any is read.

    Raises
    ------
    InputError
        With the chunk's size and the worker's memory.
    """
    limit = _memory_of_a_worker(conditions)
    for volume in volumes:
        size = math.prod(volume.chunk) * np.dtype(volume.dtype).itemsize
        if size > limit:
            raise InputError(
                f"a chunk must fit the memory of a worker, {format_bytes(limit)}, got chunks {volume.chunk} of "
                f"{format_bytes(size)} in {volume.path}; use fewer --workers, or copy the volume to smaller chunks"
            )


def _memory_of_a_worker(conditions: Conditions) -> int:
    if conditions.client is not None:
        workers = conditions.client.scheduler_info(n_workers=-1)["workers"].values()
        limits = [w["memory_limit"] for w in workers if w.get("memory_limit")]
        if limits:
            return int(min(limits))
    return memory_of_computer()


def count_missing(volume: Volume, box: Box | None = None, *, policy: str = "fill") -> int | None:
    """Count the chunk files that a box would read and that are not there.

    Parameters
    ----------
    box : Box, optional
        In voxels of the volume; absent: all of it.
    policy : "fill" or "refuse"
        What is done about them.

    Returns
    -------
    int or None
        None where the store cannot be listed, or is too large to be listed for a number alone.

    Raises
    ------
    InputError
        With the count, where they are refused; also where they cannot be counted then.
    """
    box = box or volume.box
    unit = volume.shard or volume.chunk
    wanted = math.prod(-(-b // u) - a // u for a, b, u in zip(box.start, box.stop, unit, strict=True))
    found = None
    if wanted <= _MOST_LISTED or policy == "refuse":
        found = volume.count_stored(box)
    n_missing = None if found is None else wanted * volume.files_across_channels - found
    if policy == "refuse" and n_missing != 0:
        told = "that cannot be listed" if n_missing is None else f"of which {n_missing} chunk files are missing"
        raise InputError(
            f'missing = "refuse" needs a volume with every chunk stored, got {volume.path}, {told}; '
            'restore them, or let them be the fill value with missing = "fill"'
        )
    return n_missing


def missing_of(volumes: Iterable[tuple[Volume, Box | None]], policy: str) -> dict[str, Any]:
    """Return the figure for a plan or a report: missing chunk files of all volumes, None if one is unknown."""
    counts = [count_missing(volume, box, policy=policy) for volume, box in volumes]
    return {"missing_chunks": None if None in counts else sum(c for c in counts if c is not None)}
