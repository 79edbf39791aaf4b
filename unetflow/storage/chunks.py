"""A bounded cache of decoded chunks: what neighbouring blocks share is fetched once.

::

    chunks   |  a  |  b  |  c  |  d  |
    block 0  [---------halo]                 fetches a, b
    block 1        [halo---------halo]       fetches c, finds b
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box, Shape

if TYPE_CHECKING:
    from unetflow.storage.array import AnyArray
    from unetflow.storage.voxels import Volume

Key = tuple[str, Shape]
_ENTRY_BYTES = 1024  # key, header and one value


class ChunkCache:
    """Decoded chunks of volumes, the most recently used ones, up to a number of bytes.

    One process holds one while it works through a pass; threads may share it. It knows nothing of
    writes, so it serves volumes that nobody changes meanwhile.

    Parameters
    ----------
    budget : int
        Bytes of voxels that are kept. A chunk of one value, as those around a specimen are, takes hardly any.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self._n_fetched = self._bytes_fetched = 0
        self._kept: OrderedDict[Key, AnyArray] = OrderedDict()
        self._size = 0
        self._lock = threading.Lock()

    def read(self, volume: Volume, box: Box) -> AnyArray:
        """Return the voxels of a box inside a volume, ``(C, *box.shape)``.

        Raises
        ------
        CorruptChunkError
            If stored data cannot be decoded.
        """
        out = np.empty((volume.n_channels, *box.shape), volume.dtype)
        if box.size == 0:
            return out
        first = tuple(a // c for a, c in zip(box.start, volume.chunk, strict=True))
        stop = tuple(-(-b // c) for b, c in zip(box.stop, volume.chunk, strict=True))
        is_missing = np.ones(tuple(b - a for a, b in zip(first, stop, strict=True)), bool)
        for at in np.ndindex(*is_missing.shape):
            index = tuple(f + i for f, i in zip(first, at, strict=True))
            chunk = self._find((volume.path, index))
            if chunk is not None:
                is_missing[at] = False
                _paste(out, box, chunk, _box_of(volume, index, index))
        for low, high in split_boxes(is_missing):
            index = tuple(f + i for f, i in zip(first, low, strict=True))
            self._fetch(volume, index, tuple(f + i - 1 for f, i in zip(first, high, strict=True)), out, box)
        return out

    def take_counts(self) -> dict[str, int]:
        """Return the chunks read from the store since the last call, and their decoded bytes."""
        with self._lock:
            counts = {"chunks": self._n_fetched, "fetched": self._bytes_fetched}
            self._n_fetched = self._bytes_fetched = 0
        return counts

    def _fetch(self, volume: Volume, low: Shape, high: Shape, out: AnyArray, box: Box) -> None:
        """Read the chunks from ``low`` to ``high``, both included, and keep a copy of each."""
        whole = _box_of(volume, low, high)
        voxels = volume.read(whole)
        _paste(out, box, voxels, whole)
        for step in np.ndindex(*(b - a + 1 for a, b in zip(low, high, strict=True))):
            index = tuple(a + i for a, i in zip(low, step, strict=True))
            part = _box_of(volume, index, index).relative_to(whole)
            self._keep((volume.path, index), _compact(voxels[(slice(None), *part.slices)]))

    def _find(self, key: Key) -> AnyArray | None:
        with self._lock:
            chunk = self._kept.get(key)
            if chunk is not None:
                self._kept.move_to_end(key)
            return chunk

    def _keep(self, key: Key, chunk: AnyArray) -> None:
        with self._lock:
            self._n_fetched += 1
            self._bytes_fetched += chunk.nbytes
            before = self._kept.pop(key, None)
            self._size += _cost(chunk) - (0 if before is None else _cost(before))
            self._kept[key] = chunk
            while self._size > self.budget:
                self._size -= _cost(self._kept.popitem(last=False)[1])


def _compact(voxels: AnyArray) -> AnyArray:
    """Copy a chunk; one whose bits are all the same becomes one value that is seen everywhere."""
    bits = voxels.view(f"u{voxels.itemsize}")
    one = bits[(slice(0, 1),) * bits.ndim]
    if bits.flat[-1] != one.flat[0] or (bits != one).any():
        return voxels.copy()
    return np.broadcast_to(one.copy().view(voxels.dtype), voxels.shape)


def _cost(chunk: AnyArray) -> int:
    """Return the bytes that a kept chunk takes."""
    return chunk.nbytes if any(chunk.strides) else _ENTRY_BYTES


def split_boxes(flags: npt.NDArray[np.bool_]) -> list[tuple[Shape, Shape]]:
    """Cover the true places of an array by few boxes that hold nothing else.

    Returns
    -------
    list of (start, stop)

    Examples
    --------
    >>> split_boxes(np.array([[False, True, True], [False, True, True], [True, False, False]]))
    [((0, 1), (2, 3)), ((2, 0), (3, 1))]
    """
    left = flags.copy()
    found = []
    while left.any():
        low = np.unravel_index(int(left.argmax()), left.shape)
        start, stop = [int(i) for i in low], [int(i) + 1 for i in low]
        for axis in reversed(range(left.ndim)):
            while stop[axis] < left.shape[axis] and _next_plane(left, start, stop, axis).all():
                stop[axis] += 1
        left[tuple(slice(a, b) for a, b in zip(start, stop, strict=True))] = False
        found.append((tuple(start), tuple(stop)))
    return found


def _next_plane(left: npt.NDArray[np.bool_], start: list[int], stop: list[int], axis: int) -> npt.NDArray[np.bool_]:
    index = [slice(a, b) for a, b in zip(start, stop, strict=True)]
    index[axis] = slice(stop[axis], stop[axis] + 1)
    return left[tuple(index)]


def _box_of(volume: Volume, low: Shape, high: Shape) -> Box:
    """Return the voxels of the chunks from ``low`` to ``high``, both included."""
    start = tuple(i * c for i, c in zip(low, volume.chunk, strict=True))
    stop = tuple(min((i + 1) * c, n) for i, c, n in zip(high, volume.chunk, volume.shape, strict=True))
    return Box(start, stop)


def _paste(out: AnyArray, box: Box, voxels: AnyArray, place: Box) -> None:
    """Copy what two boxes share."""
    part = box.intersect(place)
    if part.size:
        there = (slice(None), *part.relative_to(place).slices)
        out[(slice(None), *part.relative_to(box).slices)] = voxels[there]
