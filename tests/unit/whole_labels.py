"""What a labelling must give: SciPy's components of the whole volume. The oracle of kernels and of passes."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def whole_labels(mask: np.ndarray, linked: tuple[bool, ...], connectivity: str, min_size: int) -> np.ndarray:
    """Label the whole volume with SciPy, drop small components, number by first voxel."""
    structure = ndimage.generate_binary_structure(mask.ndim, 1 if connectivity == "face" else mask.ndim)
    for axis, is_linked in enumerate(linked):
        if not is_linked:
            moved = np.moveaxis(structure, axis, 0)
            moved[0], moved[2] = False, False
    labels, _ = ndimage.label(mask, structure)
    result = np.zeros(mask.shape, np.uint64)
    n = 0
    for label in dict.fromkeys(labels[labels > 0].tolist()):
        component = labels == label
        if component.sum() >= min_size:
            n += 1
            result[component] = n
    return result
