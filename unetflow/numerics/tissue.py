"""A synthetic tissue: bright cells that touch, dark membranes between them, gaps, uneven light, noise.

Every voxel is a function of its own coordinates and the seed, so any box of the volume can be
made alone and does not depend on how the volume is cut. It shows whether a pipeline works; it
is no test of accuracy on real images.

Notes
-----
Cells are the Voronoi cells of one seed in each cell of a cubic lattice, jittered, seen through
a smooth displacement of the coordinates. Some lattice cells are empty: gaps between the cells.
All randomness comes from a hash of whole numbers (lattice or voxel indices) and the seed [1]_.

References
----------
.. [1] Steele, Lea, Flood: Fast splittable pseudorandom number generators. OOPSLA 2014
   (the finaliser of SplitMix64).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box

U64 = np.uint64
_STEP, _MIX_1, _MIX_2 = U64(0x9E3779B97F4A7C15), U64(0xBF58476D1CE4E5B9), U64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11 = U64(27), U64(30), U64(31), U64(11)

# Streams of random numbers: one letter each would say less.
_JITTER, _EMPTY, _BRIGHTNESS, _WARP, _COARSE, _FINE, _LIGHT, _NOISE = 0, 3, 4, 5, 8, 9, 10, 11

# Grey values and lengths (the latter in voxels of the finest axis, or parts of a cell).
_CELL, _SPREAD, _GAP, _MEMBRANE = 165.0, 25.0, 70.0, 45.0
_MEMBRANE_HALF_WIDTH = 1.3
_WARP_AMPLITUDE, _WARP_SCALE = 0.13, 0.6
_NUCLEUS_RADIUS, _NUCLEUS_SHADE = 0.24, -22.0


def tissue(
    box: Box,
    shape: Sequence[int],
    *,
    seed: int,
    cell_size: float = 24.0,
    voxel_size: Sequence[float] | None = None,
    gap: float = 0.12,
    noise: float = 9.0,
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
    """Make a box of a synthetic tissue volume.

    Parameters
    ----------
    box : Box
        Voxels to make, over the axes ``([Z, ]Y, X)`` of the volume.
    shape : sequence of int
        Shape of the whole volume; it only numbers the cells.
    seed : int
        Same seed, same tissue.
    cell_size : float
        Mean diameter of a cell, in voxels of the finest axis; at least 8.
    voxel_size : sequence of float, optional
        Per axis, in any unit; absent: cubes.
    gap : float
        Share of space without cells.
    noise : float
        Standard deviation of the noise, in grey values.

    Returns
    -------
    raw : ndarray of uint8, shape of the box
        Grey values.
    ids : ndarray of uint32, shape of the box
        Number of the cell, 0 in gaps. Membranes belong to the cells on their sides, so cells
        touch; the numbers are unique over the volume and have holes.

    Examples
    --------
    >>> raw, ids = tissue(Box((0, 0), (64, 64)), (64, 64), seed=0)
    >>> raw.dtype, ids.dtype, len(np.unique(ids)) > 4
    (dtype('uint8'), dtype('uint32'), True)
    """
    n_axes = len(shape)
    if n_axes not in (2, 3) or box.ndim != n_axes:
        raise ValueError(f"tissue has the axes yx or zyx, got the shape {tuple(shape)} and the box {box}")
    if cell_size < 8:
        raise ValueError(f"cells need a diameter of at least 8 voxels, got {cell_size}")
    size = np.asarray(voxel_size if voxel_size is not None else [1.0] * n_axes, np.float64)
    spacing = np.ones(3)
    spacing[3 - n_axes :] = size / size.min()
    lattice = lattice_shape(shape, cell_size, tuple(spacing[3 - n_axes :]))
    if math.prod(lattice) >= 2**32:
        raise ValueError(f"cell numbers must fit 32 bits, got a lattice of {lattice}; use larger cells")
    start = np.array((0,) * (3 - n_axes) + box.start, np.int64)
    full = (1,) * (3 - n_axes) + box.shape
    raw, ids = np.empty(full, np.uint8), np.empty(full, np.uint32)
    base = U64(_mix(U64(seed % 2**64)))  # a kernel returns Python numbers
    _fill(raw, ids, start, spacing, np.array(lattice, np.int64), n_axes == 2, base, cell_size, gap, noise)
    return raw.reshape(box.shape), ids.reshape(box.shape)


def lattice_shape(shape: Sequence[int], cell_size: float, spacing: Sequence[float]) -> tuple[int, int, int]:
    """Return the number of lattice cells along z, y, x that a volume can meet.

    Three more on each side than the volume itself, because coordinates are displaced and a
    voxel's neighbours count too.
    """
    cells = [math.ceil(n * s / cell_size) + 6 for n, s in zip(shape, spacing, strict=True)]
    return (1, cells[0], cells[1]) if len(cells) == 2 else (cells[0], cells[1], cells[2])


@numba.njit(cache=True, nogil=True)
def _mix(value: Any) -> Any:
    value = (value ^ (value >> _S30)) * _MIX_1
    value = (value ^ (value >> _S27)) * _MIX_2
    return value ^ (value >> _S31)


@numba.njit(cache=True, nogil=True)
def _random(base: Any, stream: int, z: int, y: int, x: int) -> float:
    """Return a number in [0, 1) that belongs to three whole numbers and a stream."""
    value = _mix(base + _STEP * U64(stream + 1))
    value = _mix(value + _STEP * U64(z))
    value = _mix(value + _STEP * U64(y))
    value = _mix(value + _STEP * U64(x))
    return float(value >> _S11) * 2.0**-53


@numba.njit(cache=True, nogil=True)
def _smooth(base: Any, stream: int, z: float, y: float, x: float, is_flat: bool) -> float:
    """Return smooth noise in [-1, 1]: random corner values of a unit grid, blended."""
    z0, y0, x0 = math.floor(z), math.floor(y), math.floor(x)
    fz, fy, fx = z - z0, y - y0, x - x0
    fz, fy, fx = fz * fz * (3 - 2 * fz), fy * fy * (3 - 2 * fy), fx * fx * (3 - 2 * fx)
    total = 0.0
    for dz in range(1 if is_flat else 2):
        wz = 1.0 if is_flat else (fz if dz else 1 - fz)
        for dy in range(2):
            wy = fy if dy else 1 - fy
            for dx in range(2):
                wx = fx if dx else 1 - fx
                total += wz * wy * wx * _random(base, stream, int(z0) + dz, int(y0) + dy, int(x0) + dx)
    return 2 * total - 1


@numba.njit(cache=True, nogil=True)
def _fill(
    raw: Any,
    ids: Any,
    start: Any,
    spacing: Any,
    lattice: Any,
    is_flat: bool,
    base: Any,
    cell_size: float,
    gap: float,
    noise: float,
) -> None:
    n_z, n_y, n_x = raw.shape
    for k in range(n_z):
        for j in range(n_y):
            for i in range(n_x):
                z, y, x = start[0] + k, start[1] + j, start[2] + i
                # position in voxels of the finest axis
                pz, py, px = z * spacing[0], y * spacing[1], x * spacing[2]
                cell, edge, depth, rim = _nearest(pz, py, px, lattice, is_flat, base, cell_size, gap)
                ids[k, j, i] = cell
                grey = _shade(pz, py, px, cell, edge, depth, rim, is_flat, base, cell_size)
                # Irwin-Hall: four uniform numbers make a bell of deviation sqrt(1/3)
                bell = -2.0
                for draw in range(4):
                    bell += _random(base, _NOISE + draw, z, y, x)
                grey += noise * bell * math.sqrt(3.0) * math.sqrt(max(grey, 1.0) / _CELL)
                raw[k, j, i] = np.uint8(min(255.0, max(0.0, grey + 0.5)))


@numba.njit(cache=True, nogil=True)
def _nearest(
    pz: float, py: float, px: float, lattice: Any, is_flat: bool, base: Any, cell_size: float, gap: float
) -> Any:
    """Find the cell of a point, its distance to the next cell, to its own centre, and if there is a membrane.

    Returns
    -------
    number of the cell or 0, distance to the boundary, distance to the seed, 1 if a cell is on
    either side of the boundary, else 0; lengths in voxels of the finest axis.
    """
    scale = _WARP_SCALE * cell_size
    far = _WARP_AMPLITUDE * cell_size
    wz, wy, wx = pz / scale, py / scale, px / scale
    qz = 0.0 if is_flat else (pz + far * _smooth(base, _WARP, wz, wy, wx, is_flat)) / cell_size
    qy = (py + far * _smooth(base, _WARP + 1, wz, wy, wx, is_flat)) / cell_size
    qx = (px + far * _smooth(base, _WARP + 2, wz, wy, wx, is_flat)) / cell_size
    cz, cy, cx = int(math.floor(qz)), int(math.floor(qy)), int(math.floor(qx))
    reach, jitter = (2, 0.84) if is_flat else (1, 0.66)
    margin = (1 - jitter) / 2
    first = second = 1e18
    az = ay = ax = bz = by = bx = 0.0
    first_id = second_id = 0
    for z in range(cz - (0 if is_flat else reach), cz + (0 if is_flat else reach) + 1):
        for y in range(cy - reach, cy + reach + 1):
            for x in range(cx - reach, cx + reach + 1):
                sz = 0.0 if is_flat else z + margin + jitter * _random(base, _JITTER, z, y, x)
                sy = y + margin + jitter * _random(base, _JITTER + 1, z, y, x)
                sx = x + margin + jitter * _random(base, _JITTER + 2, z, y, x)
                distance = (sz - qz) ** 2 + (sy - qy) ** 2 + (sx - qx) ** 2
                if distance < second:
                    is_empty = _random(base, _EMPTY, z, y, x) < gap
                    row = z if is_flat else z + 3
                    number = 0 if is_empty else 1 + (row * lattice[1] + y + 3) * lattice[2] + x + 3
                    if distance < first:
                        second, bz, by, bx, second_id = first, az, ay, ax, first_id
                        first, az, ay, ax, first_id = distance, sz, sy, sx, number
                    else:
                        second, bz, by, bx, second_id = distance, sz, sy, sx, number
    between = math.sqrt((az - bz) ** 2 + (ay - by) ** 2 + (ax - bx) ** 2)
    edge = (second - first) / (2 * between) * cell_size
    rim = 1 if first_id or second_id else 0
    return np.uint32(first_id), edge, math.sqrt(first) * cell_size, rim


@numba.njit(cache=True, nogil=True)
def _shade(
    pz: float,
    py: float,
    px: float,
    cell: int,
    edge: float,
    depth: float,
    rim: int,
    is_flat: bool,
    base: Any,
    cell_size: float,
) -> float:
    """Return the grey value of a point without noise."""
    coarse, fine, light = 0.25 * cell_size, 0.09 * cell_size, 7.0 * cell_size
    grey = _GAP
    if cell:
        grey = _CELL + _SPREAD * (2 * _random(base, _BRIGHTNESS, 0, 0, int(cell)) - 1)
        soft = 1 / (1 + math.exp((depth - _NUCLEUS_RADIUS * cell_size) / (0.03 * cell_size)))
        grey += _NUCLEUS_SHADE * soft
    grey += 12 * _smooth(base, _COARSE, pz / coarse, py / coarse, px / coarse, is_flat)
    grey += 9 * _smooth(base, _FINE, pz / fine, py / fine, px / fine, is_flat)
    if rim:
        grey += (_MEMBRANE - grey) * math.exp(-((edge / _MEMBRANE_HALF_WIDTH) ** 4))
    return grey * (1 + 0.22 * _smooth(base, _LIGHT, pz / light, py / light, px / light, is_flat))
