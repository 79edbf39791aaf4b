"""What every foreign file looks like to a reader: a shape, perhaps axes, and boxes of voxels."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import Box

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Source:
    """One array in one file, opened anew by whoever reads it: picklable and small.

    Parameters
    ----------
    path : str
        The file.
    shape : tuple of int
        Length of each stored axis, channels included.
    dtype : str
        Native-endian NumPy type of what `read` returns.
    axes : str, optional
        One letter of ``tczyx`` a stored axis, where the file says so.
    voxel_size : tuple of float, optional
        Micrometres per spatial axis in the order of ``axes`` (z, y, x without), where the file says so.
    is_planewise : bool
        Whether a box costs as much as the whole planes that it cuts, as in a PNG.
    dataset : str, optional
        Place of the array in a file that can hold several: ``/volumes/raw``.
    """

    path: str
    shape: tuple[int, ...]
    dtype: str
    axes: str | None = None
    voxel_size: tuple[float, ...] | None = None
    is_planewise: bool = False
    dataset: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return stem(self.path)

    @property
    def files(self) -> list[str]:
        """Files whose size and time tell whether the array changed."""
        return [self.path]

    def at(self, path: str) -> Self:
        """Return the source of another file that is known to be of the same kind."""
        return replace(self, path=path)

    def read(self, box: Box) -> Array:
        """Return the voxels of a box over all stored axes, native-endian."""
        raise NotImplementedError


def stem(path: str | Path) -> str:
    """Return a file's name without its endings.

    Examples
    --------
    >>> stem("a/cell.03.ome.tif"), stem("b.png")
    ('cell.03', 'b')
    """
    name = Path(path).name
    name = re.sub(r"\.[^.]+$", "", name)
    return re.sub(r"\.ome$", "", name, flags=re.IGNORECASE)


def natural_key(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a key that sorts ``t2`` before ``t10``.

    Examples
    --------
    >>> sorted(["t10", "t2", "t1"], key=natural_key)
    ['t1', 't2', 't10']
    """
    parts = re.split(r"([0-9]+)", text)
    return tuple((0, int(p), "") if p.isdecimal() else (1, 0, p) for p in parts if p)


def numeric_dtype(dtype: Any, path: str) -> str:
    """Return the native type that stands for ``dtype``: bool becomes uint8.

    Raises
    ------
    InputError
        For complex numbers, text and objects.
    """
    kind = np.dtype(dtype)
    if kind.kind == "b":
        return "uint8"
    if kind.kind not in "iuf" or kind.itemsize > 8:
        raise InputError(
            f"voxels must be numbers of at most 64 bit, got {kind} in {path}; "
            "save it as integers or floats"
        )
    return str(kind.newbyteorder("=").name)
