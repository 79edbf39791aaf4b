"""Make a mask and label it on two workers; print everyone's highest memory as JSON. A process of its own.

python drive_label.py FOLDER KIND SIDE SHARD
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import zarr

CELL = 9  # of a small object and what is around it


def main() -> None:
    """Make the mask in another process, label, ask everyone for their peak."""
    from unetflow import label_volume
    from unetflow.memory import peak_memory
    from unetflow.runtime.cluster import open_client

    folder, kind, side, shard = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    mask = folder / f"{kind}-{side}.zarr"
    if len(sys.argv) > 5:
        return make(mask, kind, side, shard)
    subprocess.run([sys.executable, *sys.argv, "make"], check=True)
    with open_client("local", workers=2) as client:
        assert client is not None
        done = label_volume(mask, folder / f"{kind}-{side}-labels", client=client, chunk=[min(64, shard)] * 3,
                            shard=[shard] * 3)  # fmt: skip
        worker = max(client.run(peak_memory).values())
    result = {"driver": peak_memory(), "worker": worker, "objects": done["objects"], "seconds": done["seconds"]}
    print(json.dumps(result))


def make(path: Path, kind: str, side: int, shard: int) -> None:
    """Write a mask: "small" boxes everywhere, "one" lattice through all blocks, or a "sparse" corner of boxes."""
    mask = zarr.create_array(path, shape=(side,) * 3, chunks=(min(64, shard),) * 3, shards=(shard,) * 3, dtype="uint8")
    n_shards = 1 if kind == "sparse" else -(-side // shard)
    for corner in np.ndindex((n_shards,) * 3):
        along = [np.arange(i * shard, min((i + 1) * shard, side)) for i in corner]
        if kind == "one":
            z, y, x = (a % 32 == 5 for a in along)
            voxels = (z[:, None, None] & y[None, :, None]) | (y[None, :, None] & x) | (z[:, None, None] & x)
        else:
            z, y, x = (a % CELL < 5 for a in along)
            voxels = z[:, None, None] & y[None, :, None] & x
        mask[tuple(slice(int(a[0]), int(a[-1]) + 1) for a in along)] = voxels.astype(np.uint8)


if __name__ == "__main__":
    main()
