"""Segment a volume on two workers and print the highest memory of everyone as JSON; a process of its own.

python drive_segment.py FOLDER NAME OUTPUTS TILE
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path


def main() -> None:
    """Segment, watch the disk meanwhile, ask everyone for their peak."""
    from unetflow.memory import peak_memory
    from unetflow.runtime.cluster import open_client
    from unetflow.settings import make_settings
    from unetflow.stages.segment import segment
    from unetflow.stages.work import Conditions

    folder, name, outputs = Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
    out = folder / f"{name}-{len(outputs) - 1}.zarr"
    tile = int(sys.argv[4])
    cut = {"tile": [tile] * 3, "chunk": [64] * 3, "shard": [2 * tile] * 3}
    settings = make_settings({"segment": {"outputs": outputs, **cut}, "model": {"dims": 3}})
    watch = Disk(out)
    with open_client("local", workers=2) as client:
        assert client is not None
        found = segment(
            settings, str(folder / f"{name}.zarr"), model=str(folder / "model.safetensors"), out=str(out),
            mask=str(folder / f"{name}-mask.zarr"), conditions=Conditions(client),
        )  # fmt: skip
        workers = list(client.run(peak_memory).values())
    peak = watch.stop()
    labels = sum(size_of(p) for p in (out / "labels").glob("*/0"))
    result = {
        "driver": peak_memory(), "worker": max(workers), "disk_peak": peak, "disk_end": size_of(out),
        "label_bytes": labels, "seconds": found["seconds"], "blocks": found["blocks"], "seam": found.get("seam_score"),
    }  # fmt: skip
    print(json.dumps(result))


class Disk(threading.Thread):
    """Looks every few seconds at how much a folder holds."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.folder, self.peak, self.is_over = folder, 0, threading.Event()
        self.start()

    def run(self) -> None:
        """Look until told to stop."""
        while not self.is_over.wait(3):
            self.peak = max(self.peak, size_of(self.folder))

    def stop(self) -> int:
        """Return the most that was seen."""
        self.is_over.set()
        self.join()
        return max(self.peak, size_of(self.folder))


def size_of(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:
                continue
    return total


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
