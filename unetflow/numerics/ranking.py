"""Number the objects of a volume 1..N by their first voxel in C order, block by block.

An object's number is one more than the objects that start before it. In C order these are all
that start in planes before, in rows of blocks before in the same plane, and before it in its own
row of blocks. The last are counted line by line of each block:

::

    plane p    +------+------+------+
               | row 0            y |      rows     starts in (plane, row of blocks): the driver adds them up
               +------+------+------+
               | row 1|      |      |      lines    starts in (line, block): a row of blocks is read to add them up
               +------+------+------+

So no list of all objects is ever sorted, or even made, and the numbers do not depend on the cut.
A *plane* is one position along all axes but the last two, a *line* one along all but the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]


def line_counts(first: Integers, shape: Sequence[int]) -> npt.NDArray[np.uint32]:
    """Count the objects that start in each line of a block.

    Parameters
    ----------
    first : ndarray of int64, shape (n,)
        Index (C order) in the block of each object's first voxel.
    shape : sequence of int
        Of the block, ``([T, ][Z, ]Y, X)``.

    Returns
    -------
    ndarray of uint32, shape ([T, ][Z, ]Y)

    Examples
    --------
    >>> line_counts(np.array([0, 2, 9]), (3, 4)).tolist()
    [2, 0, 1]
    """
    n_lines = int(np.prod(shape[:-1]))
    counts = np.bincount(first // shape[-1], minlength=n_lines)
    return counts.astype(np.uint32).reshape(shape[:-1])


def ranks(first: Integers, length: int, lines: npt.NDArray[Any], column: int, before: Integers) -> Integers:
    """Return the numbers of the objects that start in a block.

    Parameters
    ----------
    first : ndarray of int64, shape (n,)
        As in `line_counts`, sorted.
    length : int
        Of the block along the last axis.
    lines : ndarray of int, shape (P, Y, B)
        Starts in each line of the B blocks of this row, by plane.
    column : int
        Which of the B blocks this is.
    before : ndarray of int64, shape (P,)
        Objects that start before this row of blocks, by plane.

    Returns
    -------
    ndarray of int64, shape (n,)
        From 1.

    Examples
    --------
    >>> lines = np.array([[[1, 2], [0, 1]]])
    >>> ranks(np.array([0, 3, 4]), 4, lines, 1, np.array([10])).tolist()
    [12, 13, 14]
    """
    in_row = lines.reshape(len(lines), -1).astype(np.int64)
    starts = np.cumsum(in_row, axis=1) - in_row + before[:, None]
    own = starts.reshape(lines.shape)[..., column].reshape(-1)
    line = first // length
    within = np.arange(len(first)) - np.searchsorted(line, line)
    return np.asarray(own[line] + within + 1, np.int64)


def renumber(
    ids: npt.NDArray[Any], present: npt.NDArray[np.int64], given: npt.NDArray[np.int64], dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Replace ids by the numbers that they were given; 0 stays.

    Parameters
    ----------
    ids : ndarray of int
    present : ndarray of int64, shape (n,)
        The ids above 0 that there are, sorted.
    given : ndarray of int64, shape (n,)
        The number of each.

    Examples
    --------
    >>> renumber(np.array([7, 0, 3, 7]), np.array([3, 7]), np.array([1, 5]), "uint32").tolist()
    [5, 0, 1, 5]
    """
    numbers = np.concatenate([[0], given]).astype(dtype)
    return numbers[np.searchsorted(present, ids, side="right")]
