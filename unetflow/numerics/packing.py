"""Whole-number arrays as short text, so that counts travel inside JSON reports."""

from __future__ import annotations

import base64
import zlib

import numpy as np
import numpy.typing as npt


def pack_integers(values: npt.NDArray[np.int64]) -> str:
    """Write a one-dimensional int64 array as text: differences, zlib, base64.

    Sorted keys and small counts have small differences, so the text is short.

    Examples
    --------
    >>> unpack_integers(pack_integers(np.array([3, 5, -9]))).tolist()
    [3, 5, -9]
    """
    differences = np.diff(values.astype("<i8", copy=False), prepend=np.int64(0))
    return base64.b64encode(zlib.compress(differences.astype("<i8").tobytes(), 6)).decode("ascii")


def unpack_integers(text: str) -> npt.NDArray[np.int64]:
    """Read what `pack_integers` wrote."""
    differences = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8")
    return np.cumsum(differences, dtype=np.int64)
