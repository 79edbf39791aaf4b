"""Small pictures that tell at a glance whether patches and weights are right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_COUNT = 4


def write_previews(dataset: Path, folder: Path) -> list[str]:
    """Draw the first training patches: image, target and weight side by side.

    Returns
    -------
    list of str
        The PNG files, in ``RUN/previews``.
    """
    from PIL import Image

    from unetflow.storage.patches import open_patches

    store = open_patches(str(dataset), "train")
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number in range(min(_COUNT, len(store))):
        image, target, weight = (array[0] for array in store.read([number]))
        picture = draw_patch(image, target, weight)
        path = folder / f"patch-{number:04d}.png"
        Image.fromarray(picture).save(path)
        written.append(str(path))
    return written


def draw_patch(
    image: npt.NDArray[Any], target: npt.NDArray[Any], weight: npt.NDArray[Any]
) -> npt.NDArray[np.uint8]:
    """Join the middle planes of image ``(C, *S)``, target and weight to one RGB picture."""
    import matplotlib

    plane = _middle(image[0].astype(np.float32), image.ndim - 1)
    dims = image.ndim - 1
    truth, weights = _middle(_flat(target, dims), dims), _middle(_flat(weight, dims), dims)
    low, high = np.percentile(plane, (1, 99))
    panels = [matplotlib.colormaps["gray"](np.clip((plane - low) / max(high - low, 1e-6), 0, 1))]
    panels.append(matplotlib.colormaps["viridis"](truth / max(1, truth.max())))
    panels.append(matplotlib.colormaps["inferno"](weights / max(1e-6, weights.max())))
    height = max(len(p) for p in panels)
    padded = [_centre(p[..., :3], height) for p in panels]
    return (np.concatenate(padded, 1) * 255).astype(np.uint8)


def _flat(array: npt.NDArray[Any], dims: int) -> npt.NDArray[Any]:
    """Reduce a multilabel axis: the number of the last mask that is set, the largest weight."""
    if array.ndim == dims:
        return array
    if array.dtype.kind == "u":
        numbers = np.arange(1, len(array) + 1).reshape(-1, *(1,) * dims)
        return np.asarray((array * numbers).max(0))
    return np.asarray(array.max(0))


def _middle(array: npt.NDArray[Any], dims: int) -> npt.NDArray[Any]:
    return array if dims == 2 else np.asarray(array[array.shape[0] // 2])


def _centre(panel: npt.NDArray[Any], height: int) -> npt.NDArray[Any]:
    missing = height - len(panel)
    pad = [(missing // 2, missing - missing // 2), (2, 2), (0, 0)]
    return np.pad(panel, pad, constant_values=1.0)
