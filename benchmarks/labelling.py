"""Labelling from Zarr to Zarr against dask-image, against its own reads and writes, and the kernel against cc3d.

The mask is smoothed noise above a quantile, drawn with a seed. All sides of a comparison run in one
process after another on the same two workers of one thread each; the fastest of the rounds counts.
"The same reads and writes" are those of the labelling: the mask read, an array of fragments written
and read, and the labels written, block by block, with nothing in between. The kernel's time is that
of the process (CPU), on one thread.

    python benchmarks/labelling.py [--side 512] [--rounds 2]
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Read by the numerical libraries when they are loaded.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ[_name] = "1"

import numpy as np  # noqa: E402
import zarr  # noqa: E402
from report import write_report  # noqa: E402
from scipy import ndimage  # noqa: E402

import unetflow  # noqa: E402
from unetflow.geometry import Block, BlockGrid, Box  # noqa: E402
from unetflow.stages.work import Conditions, open_work  # noqa: E402

PEER_BAR, READING_BAR, KERNEL_BAR = 3.0, 1.5, 2.0
CHUNK, SHARD = 64, 256


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    from unetflow.runtime.cluster import open_client

    rows = [kernel(connectivity, options.rounds) for connectivity in ("face", "full")]
    with tempfile.TemporaryDirectory() as name, open_client("local", workers=2) as client:
        folder = Path(name)
        make_mask(folder / "mask.zarr", options.side)
        unetflow.label_volume(folder / "mask.zarr", folder / "warm", client=client)
        mask, turns = folder / "mask.zarr", []
        for _ in range(options.rounds):  # by turns: what else the machine does meets both
            turns.append([timed(folder / run.__name__, run, mask, client) for run in (label, copy)])
        ours, copied = (min(times) for times in zip(*turns, strict=True))
        what = f"{options.side}^3, Zarr to Zarr, two workers"
        rows.append(row(f"{what}: against its own reads and writes", ours, copied, ours <= READING_BAR * copied, 1.5))
        theirs = timed(folder / "peer", peer, mask, client)
        rows.append(row(f"{what}: against dask_image.ndmeasure.label", ours, theirs, PEER_BAR * ours <= theirs, 3.0))
        n = int(zarr.open_array(folder / "label")[:].max())
        assert n == int(zarr.open_array(folder / "peer")[:].max()), "both find the same objects"
    rounds = f"the fastest of {options.rounds} rounds, one of dask-image"
    note = f"{n} objects; chunks of {CHUNK}^3, shards of {SHARD}^3; {rounds}."
    write_report("labelling", rows, note)
    return 1 if any(r["holds"] == "FAIL" for r in rows) else 0


def make_mask(path: Path, side: int) -> None:
    """Write a mask of blobs, the same piece of noise in every shard."""
    piece = blobs(SHARD)
    mask = zarr.create_array(path, shape=(side,) * 3, chunks=(CHUNK,) * 3, shards=(SHARD,) * 3, dtype="uint8")
    for block in shards_of(side):
        mask[block.inner.slices] = piece[tuple(slice(n) for n in block.inner.shape)]


def shards_of(side: int) -> BlockGrid:
    return BlockGrid(Box.of_shape((side,) * 3), (SHARD,) * 3)


def blobs(side: int) -> np.ndarray:
    smooth = ndimage.gaussian_filter(np.random.default_rng(0).random((side,) * 3, np.float32), 3, mode="wrap")
    return np.asarray(smooth > np.quantile(smooth, 0.75), np.uint8)


def label(mask: Path, out: Path, client: Any) -> None:
    unetflow.label_volume(mask, out, client=client)


def peer(mask: Path, out: Path, client: Any) -> None:
    """Label with dask-image and store with Dask, in blocks as large as ours."""
    import dask.array as da
    from dask_image import ndmeasure

    labels, _ = ndmeasure.label(da.from_zarr(str(mask), chunks=(SHARD,) * 3))
    target = zarr.create_array(
        out, shape=labels.shape, chunks=(CHUNK,) * 3, shards=(SHARD,) * 3, dtype="uint32"
    )
    client.compute(da.store(labels.astype(np.uint32), target, lock=False, compute=False)).result()


@dataclass(frozen=True)
class Copy:
    """Read one array and write another, block by block."""

    source: Any
    target: Any

    def __call__(self, block: Block) -> dict[str, Any]:
        self.target.write(block.inner, self.source.read(block.inner)[0].astype(self.target.dtype))
        return {}


def copy(mask: Path, out: Path, client: Any) -> None:
    """Do the reads and writes of a labelling on the labels that one gave."""
    from unetflow.numerics.labelling import label_block
    from unetflow.storage.volume import create_array, open_volume

    volume, piece = open_volume(mask), mask.parent / "piece.npy"
    if not piece.exists():
        np.save(piece, label_block(blobs(SHARD), (True,) * 3).fragments)
    arrays = [
        create_array(f"{out}/{name}", axes="zyx", shape=volume.shape, dtype="uint32", chunk=(CHUNK,) * 3,
                     shard=(SHARD,) * 3)
        for name in ("fragments", "labels")
    ]  # fmt: skip
    grid = BlockGrid(volume.box, (SHARD,) * 3)
    with open_work("copy", f"{out}/work", {}, Conditions(client)) as work:
        work.run_pass("read", Read(volume, arrays[0], str(piece)), grid)
        work.run_pass("write", Copy(*arrays), grid)


@dataclass(frozen=True)
class Read:
    """Read the mask, and write the fragments of a shard, which are the same in all of them."""

    mask: Any
    target: Any
    piece: str

    def __call__(self, block: Block) -> dict[str, Any]:
        shape = self.mask.read(block.inner)[0].shape
        self.target.write(block.inner, np.load(self.piece, mmap_mode="r")[tuple(slice(n) for n in shape)])
        return {}


def kernel(connectivity: str, rounds: int) -> dict[str, str]:
    """Compare the label kernel, with its table of fragments, with the bare library."""
    import cc3d

    from unetflow.numerics.labelling import label_block

    mask = blobs(SHARD) > 0
    around = {"face": 6, "full": 26}[connectivity]
    label_block(mask[:8], (True,) * 3)
    times = {"ours": [], "theirs": []}
    for _ in range(3 + 2 * rounds):
        for side, run in (
            ("ours", lambda: label_block(mask, (True,) * 3, connectivity)),
            ("theirs", lambda: cc3d.connected_components(mask, connectivity=around, out_dtype=np.uint32)),
        ):
            start = time.process_time()
            run()
            times[side].append(time.process_time() - start)
    ours, theirs = (min(t) / mask.size * 1e9 for t in times.values())
    return {
        "what": f"kernel, {SHARD}^3, {connectivity}: against cc3d.connected_components",
        "ours": f"{ours:.1f} ns a voxel", "theirs": f"{theirs:.1f} ns a voxel", "ratio": f"{ours / theirs:.2f}",
        "bar": f"at most {KERNEL_BAR:g}", "holds": "yes" if ours <= KERNEL_BAR * theirs else "FAIL",
    }  # fmt: skip


def timed(out: Path, run: Callable[[Path, Path, Any], None], mask: Path, client: Any) -> float:
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    run(mask, out, client)
    return time.perf_counter() - start


def row(what: str, ours: float, theirs: float, holds: bool, bar: float) -> dict[str, str]:
    is_peer = bar == PEER_BAR
    ratio = theirs / ours if is_peer else ours / theirs
    return {
        "what": what, "ours": f"{ours:.2f} s", "theirs": f"{theirs:.2f} s", "ratio": f"{ratio:.2f}",
        "bar": f"{'at least' if is_peer else 'at most'} {bar:g}", "holds": "yes" if holds else "FAIL",
    }  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
