"""Random flips, quarter turns, changes of grey value and blur, one patch at a time.

Image and target move together: the network's margin is the same at both ends of an axis,
so that a flip of the input is a flip of the output.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

Floats = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]

_LEAST_BLUR = 0.1  # voxels: less changes nothing that could be seen


@dataclass(frozen=True, slots=True)
class Augmentation:
    """How much patches are changed at random.

    Parameters
    ----------
    flips : bool
        Reverse each spatial axis in half of the patches.
    turns : bool
        Turn the plane (y, x) by quarters where both axes are equally long.
    brightness : float
        Deviation of the number added to a patch (normalised grey values).
    contrast : float
        Deviation of the logarithm of the factor about the patch's mean.
    noise : float
        Largest deviation of the noise added to each voxel; drawn from 0 up to it.
    blur : float
        Largest deviation, in voxels, of a Gaussian along y and x; drawn from 0 up to it. Depth is
        left alone, whose voxels are often longer.
    """

    flips: bool = True
    turns: bool = True
    brightness: float = 0.0
    contrast: float = 0.0
    noise: float = 0.0
    blur: float = 0.0


def augment(
    image_CS: Floats, target: Array, weight: Array, how: Augmentation, rng: np.random.Generator
) -> tuple[Floats, Array, Array]:
    """Return one patch changed at random.

    Parameters
    ----------
    image_CS : ndarray of float32, shape (C, *S)
        Normalised image.
    target, weight : ndarray, shape (*S_out) or (K, *S_out)
    how : Augmentation
    rng : numpy.random.Generator
        The patch's own: the result depends on nothing else.
    """
    dims = image_CS.ndim - 1
    arrays: list[Array] = [image_CS, target, weight]
    flipped = tuple(axis for axis in range(-dims, 0) if rng.random() < 0.5)
    if how.flips:
        arrays = [np.flip(array, flipped) for array in arrays]
    n_turns = int(rng.integers(4))
    if how.turns and all(array.shape[-1] == array.shape[-2] for array in arrays):
        arrays = [np.rot90(array, n_turns, (-2, -1)) for array in arrays]
    return _change_grey(arrays[0], how, rng), arrays[1], arrays[2]


def _change_grey(image_CS: Array, how: Augmentation, rng: np.random.Generator) -> Floats:
    shift = how.brightness * rng.standard_normal()
    factor = np.exp(how.contrast * rng.standard_normal())
    deviation = how.noise * rng.random()
    image: Floats = np.array(image_CS, np.float32, order="C")
    mean = np.float32(image.mean())
    image -= mean
    image *= np.float32(factor)
    image += mean + np.float32(shift)
    noise = rng.standard_normal(image.shape, np.float32) if deviation > 0 else None
    # Drawn last, so that it changes nothing of the rest; optics blur before the camera adds noise.
    width = how.blur * rng.random()
    if width >= _LEAST_BLUR:
        image = ndimage.gaussian_filter(image, (0,) * (image.ndim - 2) + (width, width), mode="mirror")
    if noise is not None:
        image += np.float32(deviation) * noise
    return image
