"""What the voxels of a failed block look like: the first thing that whoever mends it wants to know."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.geometry import BlockGrid, Box

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume


def inspect_box(volume: Volume, box: Box) -> dict[str, Any]:
    """Return lowest, highest and mean finite voxel of a box, the share of fill value, and the count of NaN.

    Chunk by chunk, so that it takes no memory to speak of; chunks that cannot be read are counted.
    """
    low, high, total = math.inf, -math.inf, 0.0
    n_finite = n_nan = n_infinite = n_fill = n_voxels = n_unreadable = 0
    for block in BlockGrid(volume.box, volume.chunk).touching(box):
        try:
            voxels = volume.read(block.inner.intersect(box))
        except Exception:  # whatever it is, the block's own error tells it
            n_unreadable += 1
            continue
        n_voxels += voxels.size
        n_fill += int((voxels == volume.fill_value).sum())
        numbers = voxels[np.isfinite(voxels)]
        n_nan += int(np.isnan(voxels).sum())
        n_finite += numbers.size
        n_infinite += voxels.size - numbers.size
        if numbers.size:
            low, high = min(low, float(numbers.min())), max(high, float(numbers.max()))
            total += float(numbers.sum(dtype=np.float64))
    return {
        "array": volume.path,
        "box": str(box),
        "dtype": volume.dtype,
        "min": low if n_finite else None,
        "max": high if n_finite else None,
        "mean": total / n_finite if n_finite else None,
        "share_of_fill": n_fill / n_voxels if n_voxels else None,
        "nan": n_nan,
        "infinite": n_infinite - n_nan,
        "unreadable_chunks": n_unreadable,
    }
