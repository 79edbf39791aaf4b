"""`.npy` files, mapped into memory: a box costs what the box holds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from unetflow.errors import InputError
from unetflow.formats.source import Array, Source, numeric_dtype
from unetflow.geometry import Box


@dataclass(frozen=True)
class NumpyFile(Source):
    """An array that `numpy.save` wrote."""

    def read(self, box: Box) -> Array:
        """Return the voxels of a box over all stored axes, native-endian."""
        return np.array(_open(self.path)[box.slices], dtype=self.dtype, order="C")


def open_numpy(path: str) -> NumpyFile:
    """Look at a `.npy` file.

    Raises
    ------
    InputError
        If it is damaged or holds no numbers. Pickled objects are never loaded.
    """
    try:
        array = _open(path)
    except (ValueError, OSError, EOFError) as cause:
        raise InputError(f"{path} must be a .npy file of numbers: {cause}") from None
    return NumpyFile(path, array.shape, numeric_dtype(array.dtype, path))


def _open(path: str) -> Array:
    array: Array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
