"""Intensities: histograms that add, the statistics made from them, and normalisation.

A volume is measured block by block. Blocks report histograms, which add without rounding, so
the statistics do not depend on how the volume was cut. Integers of 8 and 16 bits and booleans
are counted exactly. All else (floats, wider integers) is counted in bins that a float32 with
its last 12 bits dropped names: at most 2**-11 relative error, zero and small whole numbers
(up to 4096) exact, about a million bins at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.numerics.packing import pack_integers, unpack_integers

Array = npt.NDArray[Any]

_EXACT = ("bool", "int8", "uint8", "int16", "uint16")
_DROPPED_BITS = 12
_MAGNITUDE = 0x7FFFFFFF
_N_FLOAT_BINS = int(np.float32(np.inf).view(np.int32)) >> _DROPPED_BITS
_LARGEST = np.finfo(np.float32).max


@dataclass(frozen=True, eq=False)
class Histogram:
    """How often each value occurs.

    Parameters
    ----------
    keys : ndarray of int64, shape (M,)
        Sorted. The values themselves for exact dtypes, else the signed number of the bin.
    counts : ndarray of int64, shape (M,)
    dtype : str
        Name of the dtype that was counted; it says how to read the keys.
    n_invalid : int
        NaN and infinite voxels, which are in no bin.
    """

    keys: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    dtype: str
    n_invalid: int = 0

    @classmethod
    def empty(cls, dtype: str = "bool") -> Histogram:
        """Return the histogram of no voxel at all, which changes nothing when added."""
        return cls(np.zeros(0, np.int64), np.zeros(0, np.int64), dtype)

    @property
    def n(self) -> int:
        """Number of voxels counted."""
        return int(self.counts.sum())

    @property
    def values(self) -> npt.NDArray[np.float64]:
        """The value that stands for each key: of a bin, the end that is nearer to zero."""
        if self.dtype in _EXACT:
            return self.keys.astype(np.float64)
        bits = (np.abs(self.keys) << _DROPPED_BITS).astype(np.int32)
        return np.sign(self.keys) * bits.view(np.float32).astype(np.float64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Histogram) and self.to_json() == other.to_json()

    def to_json(self) -> dict[str, Any]:
        """Return a short record for a report."""
        return {
            "keys": pack_integers(self.keys),
            "counts": pack_integers(self.counts),
            "dtype": self.dtype,
            "n_invalid": self.n_invalid,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Histogram:
        """Read what `to_json` wrote."""
        keys, counts = unpack_integers(record["keys"]), unpack_integers(record["counts"])
        return cls(keys, counts, record["dtype"], int(record["n_invalid"]))


def histogram(array: Array, mask: npt.NDArray[np.bool_] | None = None) -> Histogram:
    """Count the values of an array.

    Parameters
    ----------
    array : ndarray, shape (C, [Z, ]Y, X) or ([Z, ]Y, X)
        Booleans, integers or floats.
    mask : ndarray of bool, optional
        Voxels to count; its shape broadcasts to that of ``array``.

    Examples
    --------
    >>> h = histogram(np.array([[1, 1, 7]], np.uint8))
    >>> h.keys.tolist(), h.counts.tolist()
    ([1, 7], [2, 1])
    """
    values = array.ravel() if mask is None else array[np.broadcast_to(mask, array.shape)]
    n_invalid = 0
    if array.dtype.name in _EXACT:
        low = int(np.iinfo(array.dtype).min) if array.dtype != np.bool_ else 0
        bins = np.zeros(1 << (8 * array.dtype.itemsize), np.int64)
        _count_integers(values, low, bins)
    else:
        low = 1 - _N_FLOAT_BINS
        bins = np.zeros(2 * _N_FLOAT_BINS - 1, np.int64)
        n_invalid = _count_floats(_as_float32(values).view(np.int32), bins)
    filled = np.flatnonzero(bins)
    return Histogram(filled + low, bins[filled], array.dtype.name, n_invalid)


def add(a: Histogram, b: Histogram) -> Histogram:
    """Add two histograms, exactly and in any order.

    Histograms of different dtypes are first brought to keys that hold both.
    """
    dtype = a.dtype
    if b.dtype != dtype:
        joint = np.promote_types(a.dtype, b.dtype).name
        dtype = joint if joint in _EXACT else "float32"
    a, b = _with_dtype(a, dtype), _with_dtype(b, dtype)
    keys, inverse = np.unique(np.concatenate([a.keys, b.keys]), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, inverse, np.concatenate([a.counts, b.counts]))
    return Histogram(keys, counts, dtype, a.n_invalid + b.n_invalid)


def percentile(h: Histogram, q: float) -> float:
    """Return the value below which ``q`` percent lie, as `numpy.percentile` (linear)."""
    _refuse_empty(h)
    position = (h.n - 1) * q / 100
    rank = int(position)
    last = np.cumsum(h.counts) - 1
    lower, upper = h.values[np.searchsorted(last, [rank, min(rank + 1, h.n - 1)])]
    return float(lower + (upper - lower) * (position - rank))


def mean(h: Histogram) -> float:
    """Return the mean value."""
    _refuse_empty(h)
    return float(np.sum(h.values * h.counts) / h.n)


def std(h: Histogram) -> float:
    """Return the standard deviation over all voxels (no correction for the mean)."""
    return float(np.sqrt(np.sum((h.values - mean(h)) ** 2 * h.counts) / h.n))


def minimum(h: Histogram) -> float:
    """Return the smallest value."""
    _refuse_empty(h)
    return float(h.values[0])


def maximum(h: Histogram) -> float:
    """Return the largest value."""
    _refuse_empty(h)
    return float(h.values[-1])


def normalisation(h: Histogram, method: str) -> tuple[float, float]:
    """Choose the offset and the scale that `normalise` applies.

    ``percentile`` sends the 1st and the 99th percentile to -1 and +1; ``zscore`` uses mean and
    standard deviation; ``none`` leaves values as they are.

    Notes
    -----
    Where both percentiles coincide (a few bright voxels on an empty ground) the smallest and
    the largest value stand in. A constant volume gets the scale 1.

    Examples
    --------
    >>> normalisation(histogram(np.arange(101, dtype=np.uint8)), "percentile")
    (50.0, 49.0)
    """
    if method == "none":
        return 0.0, 1.0
    if method == "zscore":
        return mean(h), std(h) or 1.0
    if method != "percentile":
        raise InputError(f"normalise must be percentile, zscore or none, got '{method}'; use percentile")
    low, high = percentile(h, 1), percentile(h, 99)
    if low == high:
        low, high = minimum(h), maximum(h)
    return (low + high) / 2, (high - low) / 2 or 1.0


def normalise(array: Array, offset: float, scale: float) -> npt.NDArray[np.float32]:
    """Return ``(array - offset) / scale`` as float32, of the same shape."""
    wide = array.dtype.kind in "iuf" and array.dtype.itemsize > (4 if array.dtype.kind == "f" else 2)
    work = np.float64 if wide else np.float32
    result = np.subtract(array, work(offset), dtype=work)
    result /= work(scale)
    return result.astype(np.float32, copy=False)


def _refuse_empty(h: Histogram) -> None:
    if h.n == 0:
        raise InputError(
            f"statistics need at least one valid voxel, got none ({h.n_invalid} are NaN or infinite); "
            "look at the volume, its mask and its region of interest"
        )


def _with_dtype(h: Histogram, dtype: str) -> Histogram:
    if h.dtype == dtype or (h.dtype in _EXACT) == (dtype in _EXACT):
        return Histogram(h.keys, h.counts, dtype, h.n_invalid)
    bits = h.values.astype(np.float32).view(np.int32).astype(np.int64)
    magnitude = (bits & _MAGNITUDE) >> _DROPPED_BITS
    keys, inverse = np.unique(np.where(bits < 0, -magnitude, magnitude), return_inverse=True)
    counts = np.zeros(len(keys), np.int64)
    np.add.at(counts, inverse, h.counts)
    return Histogram(keys, counts, dtype, h.n_invalid)


def _as_float32(values: Array) -> npt.NDArray[np.float32]:
    if values.dtype.kind == "f" and values.dtype.itemsize > 4:
        # A finite float64 beyond the range of float32 is a valid voxel: keep it finite.
        infinite = np.isinf(values)
        values = np.where(infinite, values, np.clip(values, -_LARGEST, _LARGEST))
    return np.ascontiguousarray(values, np.float32)


@numba.njit(cache=True, nogil=True)
def _count_integers(values: Array, low: int, bins: npt.NDArray[np.int64]) -> None:
    for value in values:
        bins[np.int64(value) - low] += 1


@numba.njit(cache=True, nogil=True)
def _count_floats(bits: npt.NDArray[np.int32], bins: npt.NDArray[np.int64]) -> int:
    n_invalid = 0
    for word in bits:
        key = np.int64(word & _MAGNITUDE) >> _DROPPED_BITS
        if key >= _N_FLOAT_BINS:
            n_invalid += 1
        elif word < 0:
            bins[_N_FLOAT_BINS - 1 - key] += 1
        else:
            bins[_N_FLOAT_BINS - 1 + key] += 1
    return n_invalid
