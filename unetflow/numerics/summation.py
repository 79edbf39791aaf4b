"""Sum what comes in pieces to the last digit as NumPy sums it in one array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_LEAF = 2**14  # floats that are summed at once; a multiple of 8 that NumPy halves as a whole array


def pairwise_sum(pieces: Iterable[Floats], n: int) -> float:
    """Return the sum of ``n`` floats that come in pieces, ``(m,)``, of any lengths.

    NumPy sums an array as the sum of its first half (cut to a multiple of 8) and its second one, and so on. That
    tree depends on n alone, so it can be walked without the array.

    Examples
    --------
    >>> pairwise_sum([np.array([0.25]), np.array([0.5, 1.0])], 3)
    1.75
    """
    return _sum(_Puller(iter(pieces)), n)


def _sum(pull: _Puller, n: int) -> float:
    if n <= _LEAF:
        return float(pull.take(n).sum())
    half = n // 2
    half -= half % 8
    first = _sum(pull, half)
    return first + _sum(pull, n - half)


class _Puller:
    """Hands out floats in any portions."""

    def __init__(self, pieces: Iterator[Floats]) -> None:
        self._pieces, self._rest = pieces, np.zeros(0)

    def take(self, n: int) -> Floats:
        parts, missing = [self._rest], n - len(self._rest)
        while missing > 0:
            parts.append(next(self._pieces))
            missing -= len(parts[-1])
        whole = np.concatenate(parts) if len(parts) > 1 else parts[0]
        self._rest = whole[n:]
        # A copy: NumPy adds in another order what does not lie side by side.
        return np.ascontiguousarray(whole[:n])
