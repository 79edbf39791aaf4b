"""Which blocks hold anything at all: where nothing is stored there is nothing to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from unetflow.geometry import BlockGrid
from unetflow.stages.pieces import Pieces, Some

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume


def stored_only(pieces: Pieces, sources: Sequence[Volume], grids: Sequence[BlockGrid] | None = None) -> Some:
    """Leave out the blocks that find no stored file in their source; those hold fill value.

    Parameters
    ----------
    pieces : Pieces
        Blocks of as many images as there are sources.
    sources : sequence of Volume
        What each image's blocks are made from.
    grids : sequence of BlockGrid, optional
        The same blocks as boxes of the sources; absent: those of ``pieces``.
    """
    found = []
    for number, source in enumerate(sources):
        grid = pieces.grids[number] if grids is None else grids[number]
        assert isinstance(grid, BlockGrid)
        assert len(grid) == len(pieces.grids[number])
        [stored] = source.stored_blocks(grid)
        found.append(np.flatnonzero(stored) + pieces.first[number])
    return Some(pieces, np.concatenate([np.zeros(0, np.int64), *found]))
