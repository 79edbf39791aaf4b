"""What a worker holds at most, by its parts.

::

    base       interpreter and libraries
    network    weights, and a forward pass for each tile that runs at once
    blocks     the raw voxels of this block and of the next one, the results of this one and the last
    cache      decoded chunks of the raw volume
    heaps      gaps on the heaps of the threads that read, compute and write
    objects    a block of the passes that find objects, which run when the network is done
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from unetflow.forward_memory import forward_bytes, weight_bytes
from unetflow.geometry import Box
from unetflow.memory import format_bytes
from unetflow.stages.bricks import Reads
from unetflow.stages.components import label_bytes
from unetflow.stages.layout import linked_axes
from unetflow.stages.linking import link_bytes
from unetflow.stages.resampled import Resampled
from unetflow.stages.watershed import flood_bytes

if TYPE_CHECKING:
    from unetflow.stages.predict import Image
    from unetflow.stages.segment_plan import Plan

# Buffers below 32 MiB come from heaps that are never given back, one a thread, and after some blocks
# have gaps: runs of four networks took 70 to 220 MB beyond the other parts (glibc 2.36).
_HEAPS_BYTES = 160_000_000

# Resident memory of a worker with numpy, zarr, torch and distributed loaded that has run a network of
# 5 kB once: 343 MB (torch 2.13 for CPU, Python 3.11).
BASE_BYTES = 345_000_000
# numba and its compiler, which resampling loads.
_COMPILER_BYTES = 130_000_000


@dataclass(frozen=True)
class Memory:
    """What a worker holds at most, in bytes, by its parts."""

    base: int
    network: int
    blocks: int
    cache: int
    heaps: int
    objects: int = 0

    @property
    def total(self) -> int:
        """The most that is held at once: objects are found when nothing is predicted any more."""
        return self.base + max(self.network + self.blocks + self.cache + self.heaps, self.objects)

    def in_words(self) -> str:
        """Return the total and its parts as people write them."""
        parts = ", ".join(f"{name} {format_bytes(n)}" for name, n in asdict(self).items() if n)
        return f"{format_bytes(self.total)} ({parts})"


def plan_memory(made: Plan, reads: Sequence[Reads], n_threads: int, cache: int) -> Memory:
    """Work out the memory of a worker.

    Parameters
    ----------
    reads : sequence of Reads
        What the blocks of each image read.
    n_threads : int
        Tiles that a worker runs at once.
    cache : int
        Bytes of decoded chunks that a worker keeps.
    """
    network = weight_bytes(made.spec) + max(_tiles_at_once(made, i, n_threads) for i in made.images)
    blocks = max(_block_bytes(made, image, r) for image, r in zip(made.images, reads, strict=True))
    return Memory(
        base=BASE_BYTES + (_COMPILER_BYTES if any(image.ratio for image in made.images) else 0),
        network=network,
        blocks=blocks,
        cache=min(cache, max(r.bytes(r.all) for r in reads)),
        heaps=min(_HEAPS_BYTES, network + blocks),
        objects=max(_object_bytes(made, image) for image in made.images),
    )


def _object_bytes(made: Plan, image: Image) -> int:
    """Return the bytes of a block of the passes that find objects."""
    settings, shape, volume = made.settings.segment, image.domain.shape, image.volume
    if "instances" not in settings.outputs:
        return 0
    linked = linked_axes(volume.grid_axes, made.spec.dims, link=settings.link)
    is_flooded = settings.instances == "watershed"
    flooded = flood_bytes(image.shard, shape, volume.voxel_size, linked) if is_flooded else 0
    linking = link_bytes(image.shard, shape) if settings.link == "overlap" else 0
    return max(flooded, label_bytes(image.shard, shape), linking)


def _tiles_at_once(made: Plan, image: Image, n_threads: int) -> int:
    """Return the bytes of the forward passes that a worker runs at once, no more than a block has tiles."""
    tiling = made.tiling_of(image)
    first = Box.of_shape(image.block).intersect(Box.of_shape(image.domain.shape)).shift(image.domain.start)
    return min(n_threads, tiling.count(first)) * forward_bytes(made.spec, tiling.input_shape)


def _block_bytes(made: Plan, image: Image, reads: Reads) -> int:
    """Return the bytes of raw voxels and results that a worker holds beside its tiles and chunks."""
    n_classes = made.spec.out_channels
    fetched = reads.voxel_bytes * math.prod(axis.widest(1) for axis in reads.axes)
    raw = image.volume.n_channels * np.dtype(image.seen.dtype).itemsize * math.prod(a.outer for a in reads.axes)
    block = math.prod(min(b, n) for b, n in zip(image.block, image.domain.shape, strict=True))
    voxel = sum(n * size for n, size in stored_arrays(made))
    tiling = made.tiling_of(image)
    tile = 4 * n_classes * (math.prod(image.tile) + math.prod(tiling.made_shape))
    blend = 4 * n_classes * block if made.settings.segment.mode == "blend" else 0
    resampling = 0
    if image.ratio:
        fetched, resampling = _resampling_bytes(made, image, reads)
    # Computed and read ahead, with the chunks that this one takes; computed and written behind, with
    # the copy of a shard that is packed; probabilities of a tile, and the part of them that is kept.
    return 2 * raw + fetched + (2 * block + math.prod(image.shard)) * voxel + tile + blend + resampling


def _resampling_bytes(made: Plan, image: Image, reads: Reads) -> tuple[int, int]:
    """Return the bytes of chunks that a slab takes, and those of resampling it and a tile's probabilities."""
    seen, volume = Resampled(image.volume, image.ratio), image.volume
    slab = seen.slab(tuple(axis.outer for axis in reads.axes))
    source = [math.ceil(n * r) + 2 for n, r in zip(slab, image.ratio, strict=True)]
    axes = zip(reads.axes, source, volume.chunk, strict=True)
    fetched = reads.voxel_bytes * math.prod(min(a.widest(1), n + 2 * c) for a, n, c in axes)
    raw = reads.voxel_bytes * math.prod(source)
    # A channel as numbers, before and after an axis is resampled.
    wide = 2 * np.dtype(seen.dtype).itemsize * max(math.prod(source), math.prod(slab))
    tile = 2 * 4 * max(math.prod(image.tile), math.prod(made.tiling_of(image).made_shape))
    return fetched, raw + wide + tile


def stored_arrays(made: Plan) -> list[tuple[int, int]]:
    """Return channels and bytes of a voxel of each array that the predict pass writes."""
    wanted = set(made.settings.segment.outputs)
    stored = []
    if "probabilities" in wanted:
        stored.append((made.spec.out_channels, np.dtype(made.settings.segment.dtype).itemsize))
    if wanted & {"classes", "instances"}:
        stored += [(1, 1)] * (made.spec.out_channels if made.facts["kind"] == "multilabel" else 1)
    return stored
