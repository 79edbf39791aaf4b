"""Tables in the store, so that no process ever holds what is as long as a volume has objects.

`Rows` has one row a block, of any length, written whole by who does the block. A *table* is one
long column that the driver writes piece by piece and workers look up.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import BlockGrid, Box

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume

Integers = npt.NDArray[np.int64]

_ROW_CHUNK = 2**13
_TABLE_CHUNK, _TABLE_SHARD = 2**16, 2**22
# A range of this many ids is merged in memory at a time; whole shards of a table.
BUCKET = 2**18
_BUCKET_SHARD = BUCKET


def scratch_array(path: str, *, axes: str, **described: Any) -> Volume:
    """Create, or find, a temporary array; it is described as for `unetflow.storage.volume.create_array`."""
    from unetflow.storage.store import find_node
    from unetflow.storage.volume import create_array, open_volume

    if find_node(path) is None:
        return create_array(path, axes=axes, **described)
    return open_volume(path, axes=axes)


@dataclass(frozen=True)
class Rows:
    """A row of whole numbers for each block: some columns, as many entries as it needs.

    Parameters
    ----------
    volume : Volume
        Axes ``cyx``: column, block, entry. Entry 0 holds the length of the row; a row that was never
        written has none.
    """

    volume: Volume

    @classmethod
    def create(cls, path: str, n_blocks: int, n_columns: int, longest: int, *, keep: bool = False) -> Rows:
        """Make room for rows of up to ``longest`` entries; with ``keep``, find those that are there."""
        from unetflow.storage.store import find_node
        from unetflow.storage.volume import create_array, open_volume

        if not (keep and find_node(path) is not None):
            length = max(2, longest + 1)
            create_array(
                path, axes="cyx", n_channels=n_columns, shape=(max(1, n_blocks), length), dtype="int64",
                chunk=(1, min(length, _ROW_CHUNK)), overwrite=True,
            )  # fmt: skip
        return cls(open_volume(path, axes="cyx"))

    def write(self, number: int, columns: npt.NDArray[Any]) -> None:
        """Store the row of a block, ``(columns, n)``."""
        n, chunk = columns.shape[1], self.volume.chunk[1]
        stop = min(-(-(n + 1) // chunk) * chunk, self.volume.shape[1])
        padded = np.zeros((len(columns), 1, stop), np.int64)
        padded[:, 0, 0] = n
        padded[:, 0, 1 : n + 1] = columns
        self.volume.write(Box((number, 0), (number + 1, stop)), padded)

    def read(self, number: int) -> Integers:
        """Return the row of a block, ``(columns, n)``."""
        chunk = self.volume.chunk[1]
        head = self.volume.read(Box((number, 0), (number + 1, chunk)))[:, 0]
        n = int(head[0, 0])
        if n < chunk:
            return np.asarray(head[:, 1 : n + 1])
        return np.concatenate([head[:, 1:], self.part(number, chunk - 1, n)], axis=1)

    def part(self, number: int, start: int, stop: int) -> Integers:
        """Return the entries ``start`` to ``stop - 1`` of a row."""
        return np.asarray(self.volume.read(Box((number, start + 1), (number + 1, stop + 1)))[:, 0])


def store_table(path: str, values: npt.NDArray[Any]) -> Volume:
    """Put a table that the driver holds, ``(N,)``, into the store."""
    pieces = (values[at : at + _TABLE_SHARD] for at in range(0, len(values), _TABLE_SHARD))
    return write_table(path, len(values), pieces, _TABLE_SHARD, values.dtype.name)


def write_table(
    path: str, n: int, pieces: Iterable[npt.NDArray[Any]], length: int = _BUCKET_SHARD, dtype: str = "int64"
) -> Volume:
    """Store a table of ``n`` entries that comes in pieces of ``length``, the last one shorter."""
    table = create_table(path, n, length, dtype)
    for block, piece in zip(BlockGrid(table.box, (length,)), pieces, strict=False):
        table.write(block.inner, piece)
    return table


def create_table(path: str, n: int, length: int = _BUCKET_SHARD, dtype: str = "int64") -> Volume:
    """Make room for a table of ``n`` entries that is written in pieces of ``length``."""
    from unetflow.storage.volume import create_array

    return create_array(
        path, axes="x", shape=(max(1, n),), dtype=dtype, chunk=(_TABLE_CHUNK,), shard=(length,), overwrite=True
    )


def look_up(table: Volume, places: Integers) -> npt.NDArray[Any]:
    """Return the entries of a stored table at sorted places: only the chunks that hold them are read."""
    chunks = places // _TABLE_CHUNK
    cuts = np.flatnonzero(np.diff(chunks)) + 1
    parts = [group for group in np.split(places, cuts) if len(group)]
    found = [table.read(Box((int(g[0]),), (int(g[-1]) + 1,)))[0][g - g[0]] for g in parts]
    return np.concatenate([np.zeros(0, table.dtype), *found])


def look_up_any(table: Volume, places: Integers) -> npt.NDArray[Any]:
    """Return the entries of a stored table at places in any order."""
    wanted, inverse = np.unique(places, return_inverse=True)
    return look_up(table, wanted)[inverse]
