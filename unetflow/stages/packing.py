"""Arrays as short text, so that they travel in reports and lie in ledgers."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt


def pack(array: npt.NDArray[Any]) -> str:
    """Write an array as short text for a report."""
    return base64.b64encode(zlib.compress(np.ascontiguousarray(array).tobytes(), 1)).decode()


def unpack(text: str, dtype: Any) -> npt.NDArray[Any]:
    """Read what `pack` wrote."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)
