"""A volume as a network sees it whose voxels have another length: read box by box, and never stored.

The grid that the network sees begins where the volume does. Its borders are mirrored as a volume's are, so
what comes out is what a copy of the volume on that grid would give.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.formats.units import micrometres
from unetflow.geometry import BlockGrid, Box, Shape, mirror_indices

if TYPE_CHECKING:
    from unetflow.storage.chunks import ChunkCache
    from unetflow.storage.volume import Volume

log = logging.getLogger(__name__)

# Voxels, of the volume or the view, that are resampled at once.
SLAB_VOXELS = 2**24
# Longer or shorter voxels than these hold nothing of what the network knows, or cannot be paid for.
_FARTHEST = 8.0
# Voxels that differ by less are taken as they are.
_ALIKE = 0.05


@dataclass(frozen=True)
class Resampled:
    """A view of a volume.

    Parameters
    ----------
    volume : Volume
    ratio : tuple of float
        Length of a voxel of the view in voxels of the volume, per grid axis.
    """

    volume: Volume
    ratio: tuple[float, ...]

    @cached_property
    def shape(self) -> Shape:
        """Voxels per grid axis; they cover the volume."""
        from unetflow.numerics.rescale import rescaled_length

        return tuple(rescaled_length(n, r) for n, r in zip(self.volume.shape, self.ratio, strict=True))

    @property
    def dtype(self) -> str:
        """float32, or float64 for what that does not hold."""
        return np.result_type(self.volume.dtype, np.float32).name

    def read_mirrored(self, box: Box, cache: ChunkCache | None = None) -> npt.NDArray[Any]:
        """Return the voxels of any box of the view, ``(C, *box.shape)``; the volume's chunks stay in ``cache``."""
        if Box.of_shape(self.shape).contains(box):
            return self._read(box, cache)
        index = [mirror_indices(a, b, n) for a, b, n in zip(box.start, box.stop, self.shape, strict=True)]
        needed = Box(tuple(int(i.min()) for i in index), tuple(int(i.max()) + 1 for i in index))
        data = self._read(needed, cache)
        for axis, (along, first) in enumerate(zip(index, needed.start, strict=True)):
            data = data.take(along - first, axis=axis + 1)
        return data

    def _read(self, box: Box, cache: ChunkCache | None) -> npt.NDArray[Any]:
        """Resample slab by slab: a box of long voxels is made of many of the volume's."""
        from unetflow.numerics.rescale import rescale, source_box

        out = np.empty((self.volume.n_channels, *box.shape), self.dtype)
        for slab in BlockGrid(box, self.slab(box.shape)):
            place = source_box(slab.inner, self.ratio)
            voxels = self.volume.read_mirrored(place, cache=cache)
            out[(slice(None), *slab.inner.relative_to(box).slices)] = rescale(voxels, place, slab.inner, self.ratio)
        return out

    def slab(self, shape: Shape) -> Shape:
        """Halve a shape along its first axes until what it is made of may be held."""
        lengths = list(shape)
        volume = math.prod(max(1.0, r) for r in self.ratio)
        while max(lengths) > 1 and math.prod(lengths) * volume > SLAB_VOXELS:
            axis = next(a for a, n in enumerate(lengths) if n > 1)
            lengths[axis] = -(-lengths[axis] // 2)
        return tuple(lengths)


def voxel_ratio(policy: str, volume: Volume, facts: dict[str, Any], dims: int) -> tuple[float, ...]:
    """Return the length of a voxel that the model knows in voxels of a volume, per grid axis; empty where alike.

    Lengths along axes that the network does not see do not count.

    Parameters
    ----------
    policy : "tell", "resample" or "refuse"
        What is done about voxels that differ by more than a twentieth: with "tell" they are taken as they are.
    facts : dict
        The model's record.

    Raises
    ------
    InputError
        If they are refused, or are to be resampled and nobody knows their lengths, or these are too far apart.
    """
    trained = _told(facts.get("voxel_size") or (), facts.get("unit"), dims)
    here = _told(volume.voxel_size, volume.unit, dims)
    if trained is None or here is None:
        if policy == "resample":
            who = f"the model was trained on {_UNTOLD}" if trained is None else f"{volume.path} has {_UNTOLD}"
            raise InputError(
                f'segment.voxel_size = "resample" needs the voxel sizes of volume and model, but {who}; give '
                "voxel_size in a [[data]] table, or convert the volume with --voxel-size, or leave the setting out"
            )
        return ()  # without metadata nobody knows
    found = [round(a / b, 12) for a, b in zip(trained, here, strict=True)]
    if all(abs(1 / r - 1) <= _ALIKE for r in found):
        return ()
    text = (
        f"the model was trained on voxels of {_show(trained)}, got {_show(here)} micrometres in {volume.path} along "
        f"{volume.grid_axes[-dims:]}"
    )
    if policy == "resample":
        return _resampled(found, volume.ndim, text)
    if policy == "refuse":
        raise InputError(f'{text}; let it be resampled with segment.voxel_size = "resample", or train on its like')
    log.warning(
        '%s; segment.voxel_size = "resample" lets the network see voxels of its own size, "refuse" stops here', text
    )
    return ()


_UNTOLD = "voxels of untold size"


def _told(sizes: Sequence[float], unit: str | None, dims: int) -> tuple[float, ...] | None:
    """Return lengths along the network's axes in micrometres; None where the metadata say none."""
    factor = micrometres(unit) if unit else 1.0
    if factor is None or len(sizes) < dims or (unit is None and set(sizes) == {1.0}):
        return None
    return tuple(float(v) * factor for v in sizes[-dims:])


def _resampled(found: Sequence[float], n_axes: int, text: str) -> tuple[float, ...]:
    if not all(1 / _FARTHEST <= r <= _FARTHEST for r in found):
        raise InputError(
            f"{text}; the model's voxels may be up to {_FARTHEST:g} times as long or as short as those that are "
            f"resampled, got {_show(found)} times; mend the unit, choose another level, or train on the volume's like"
        )
    ratio = tuple(r if abs(1 / r - 1) > _ALIKE else 1.0 for r in found)
    log.info("%s: resampled for the network, by %s; outputs are in the volume's voxels", text, _show(ratio))
    return (1.0,) * (n_axes - len(ratio)) + ratio


def _show(lengths: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.6g}" for v in lengths) + ")"
