"""The flips and transpositions over which test-time augmentation averages.

Whole numbers only; no torch.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from unetflow.architecture import UNetSpec


@dataclass(frozen=True, slots=True)
class Symmetry:
    """First exchange y and x if ``is_transposed``, then reverse the axes of ``flips``.

    Parameters
    ----------
    is_transposed : bool
    flips : tuple of int
        Axes counted from the end: -1 is x.
    """

    is_transposed: bool
    flips: tuple[int, ...]


def symmetries(spec: UNetSpec) -> tuple[Symmetry, ...]:
    """Return all flips, each also transposed where the network treats y and x alike.

    8 in 2-D, 16 in 3-D: the 8 of the plane, times the flip of z. Chosen by the network
    alone, never by a tile's shape, so that the average does not depend on the tile.
    """
    axes = range(-spec.dims, 0)
    flips = [
        tuple(axis for axis, is_on in zip(axes, on, strict=True) if is_on)
        for on in itertools.product((False, True), repeat=spec.dims)
    ]
    swaps = (False, True) if _is_square(spec) else (False,)
    return tuple(Symmetry(swap, flip) for swap in swaps for flip in flips)


def _is_square(spec: UNetSpec) -> bool:
    return all(window[-1] == window[-2] for window in (*spec.pool, *spec.kernel))
