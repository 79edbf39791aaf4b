"""Smooth random displacements of a patch.

Random vectors stand on a coarse grid whose corners are the corners of the patch; a natural
cubic spline runs between them [1]_. Where it would fold the patch over itself, the vectors are
scaled down. `displace` moves image, target and weight by one such field.

All positions are in voxels, from the patch's first voxel.

References
----------
.. [1] Ronneberger, Fischer, Brox: U-Net. MICCAI 2015, section 3.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from unetflow.geometry import Box
from unetflow.numerics import bspline, gridspline
from unetflow.numerics.folding import SMALLEST_JACOBIAN, largest_factor
from unetflow.numerics.gridspline import Floats, Grid
from unetflow.numerics.resample import Moved

__all__ = ["SMALLEST_JACOBIAN", "Field", "displacement", "source_box"]

# Voxels read beyond the displaced positions; the splines of order 3 have two more than their filter.
_MARGIN = {0: 1, 1: 1, 3: bspline.REACH + 2}


@dataclass(frozen=True, eq=False)
class Field:
    """A displacement of each voxel of a patch.

    Parameters
    ----------
    vectors : ndarray of float64, shape (ndim, *grid)
        Displacements in voxels at the grid's points, already multiplied by ``factor``.
    shape : tuple of int
        Of the patch.
    factor : float
        What the drawn vectors were multiplied by, 1 unless the field would have folded.
    """

    vectors: Floats
    shape: tuple[int, ...]
    factor: float

    @property
    def was_scaled(self) -> bool:
        """Whether the vectors had to be scaled down."""
        return self.factor < 1

    def values(self, box: Box | None = None) -> Floats:
        """Return the displacements (ndim, *box) of a box of the patch; of all of it if None."""
        box = Box.of_shape(self.shape) if box is None else box
        out = np.empty((3, *(1,) * (3 - box.ndim), *box.shape))
        for z, y, values in self.slabs(box):
            out[:, z, y : y + values.shape[1]] = values
        return out[3 - box.ndim :].reshape(-1, *box.shape)

    def coordinates(self, box: Box | None = None, origin: Sequence[int] | None = None) -> Floats:
        """Return the source positions (ndim, *box), counted from ``origin`` of the patch.

        ``origin`` is the start of the box that `source_box` gave; the patch's start if None.
        """
        box = Box.of_shape(self.shape) if box is None else box
        result = self.values(box)
        for axis, (start, stop) in enumerate(zip(box.start, box.stop, strict=True)):
            offset = 0 if origin is None else origin[axis]
            along = [-1 if a == axis else 1 for a in range(box.ndim)]
            result[axis] += np.arange(start - offset, stop - offset).reshape(along)
        return result

    def slabs(self, box: Box) -> Iterator[tuple[int, int, Floats]]:
        """Yield plane, first row and displacements (3, rows, X) of all slabs of a box, see `gridspline.slabs`."""
        for z, y, (values,) in gridspline.slabs(self._grid(box)):
            yield z, y, values

    def ranges(self, box: Box) -> tuple[Floats, Floats]:
        """Return the lowest and the highest source position of a box along each axis."""
        low, high = gridspline.ranges(self._grid(box))
        return low[3 - box.ndim :] + box.start, high[3 - box.ndim :] + box.start

    def _grid(self, box: Box) -> Grid:
        bases = [
            gridspline.basis(n, g)[:, s]
            for n, g, s in zip(self.shape, self.vectors.shape[1:], box.slices, strict=True)
        ]
        return gridspline.in_three_axes(self.vectors, bases)

    @property
    def is_moved(self) -> Moved:
        """Whether anything moves along z, y and x."""
        z, y, x = [False] * (3 - len(self.shape)) + [bool(along.any()) for along in self.vectors]
        return z, y, x


def displacement(
    rng: np.random.Generator | np.random.SeedSequence | int,
    shape: Sequence[int],
    *,
    grid: int = 3,
    sigma: Sequence[float],
) -> Field:
    """Draw a field that does not fold.

    Parameters
    ----------
    rng : Generator, SeedSequence or int
        The field is a function of it and of the other arguments alone.
    shape : sequence of int
        Of the patch, ([Z, ]Y, X).
    grid : int
        Points along each axis, at least 2; 2 gives straight lines between them.
    sigma : sequence of float
        Standard deviation of the vectors in voxels of each axis; 0 for no displacement.

    Examples
    --------
    >>> field = displacement(7, (1, 60, 60), sigma=(0, 3.0, 3.0))
    >>> field.values().shape, bool(np.any(field.values()[0])), field.was_scaled
    ((3, 1, 60, 60), False, False)
    """
    if grid < 2:
        raise ValueError(f"elastic grid needs at least 2 points an axis, got {grid}; use 3")
    shape = tuple(int(n) for n in shape)
    draw = np.random.default_rng(rng).standard_normal((len(shape), *(grid,) * len(shape)))
    vectors = draw * np.reshape(sigma, (-1, *(1,) * len(shape)))
    # Nothing lies along an axis of length 1: its vectors are those of the first grid point.
    factor = largest_factor(vectors, shape)
    return Field(vectors * factor, shape, factor)


def source_box(field: Field, box: Box | None = None, *, order: int = 1) -> Box:
    """Return the voxels, as seen from the patch, that the displaced ``box`` is made from.

    It includes the context of the interpolation ``order``, and may reach over the patch on
    every side; the reader mirrors what lies outside the volume.
    """
    box = Box.of_shape(field.shape) if box is None else box
    low, high = field.ranges(box)
    # An axis that is not displaced is read at whole voxels, which need no context.
    margins = [_MARGIN[order] if is_moved else 0 for is_moved in field.is_moved[3 - box.ndim :]]
    return Box(
        tuple(int(np.floor(at)) - margin for at, margin in zip(low, margins, strict=True)),
        tuple(int(np.ceil(at)) + margin + 1 for at, margin in zip(high, margins, strict=True)),
    )
