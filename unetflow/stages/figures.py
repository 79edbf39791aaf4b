"""What a segmentation costs, worked out before it runs, and what it did cost: the two side by side.

A worker's memory is the sum of what it holds at a time::

    base       interpreter and libraries
    network    weights, and a forward pass for each tile that runs at once
    blocks     the raw voxels of this block and of the next one, the results of this one and the last
    cache      decoded chunks of the raw volume
    heaps      gaps on the heaps of the threads that read, compute and write
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.forward_memory import forward_bytes, weight_bytes
from unetflow.geometry import Box, Shape
from unetflow.memory import format_bytes
from unetflow.stages.bricks import CHUNK_CACHE_BYTES, Reads, plan_reads
from unetflow.stages.tile_choice import axes_of

if TYPE_CHECKING:
    from unetflow.stages.predict import Image
    from unetflow.stages.segment_plan import Plan
    from unetflow.stages.work import Report

# Buffers below 32 MiB come from heaps that are never given back, one a thread, and after some blocks
# have gaps: runs of four networks took 70 to 220 MB beyond the other parts (glibc 2.36).
_HEAPS_BYTES = 160_000_000

# Resident memory of a worker with numpy, zarr, torch and distributed loaded that has run a network of
# 5 kB once: 343 MB (torch 2.13 for CPU, Python 3.11).
BASE_BYTES = 345_000_000


@dataclass(frozen=True)
class Memory:
    """What a worker holds at most, in bytes, by its parts."""

    base: int
    network: int
    blocks: int
    cache: int
    heaps: int

    @property
    def total(self) -> int:
        """All parts together."""
        return self.base + self.network + self.blocks + self.cache + self.heaps

    def in_words(self) -> str:
        """Return the total and its parts as people write them."""
        parts = ", ".join(f"{name} {format_bytes(n)}" for name, n in asdict(self).items())
        return f"{format_bytes(self.total)} ({parts})"


@dataclass(frozen=True)
class Figures:
    """What the predict pass of a segmentation takes.

    Parameters
    ----------
    work_factor : float
        Voxels that the network computes for each voxel segmented, over the whole job: context and what
        reaches over the end count, mirrored and turned tiles (`tta`) do not.
    n_blocks, n_tiles : int
        A tile that two blocks need counts twice.
    memory : Memory
        Of a worker.
    bytes_read : int
        Decoded bytes of the chunks that are fetched.
    chunks_distinct, chunks_fetched : int
        Chunks of the raw volume that are needed, and that are fetched, brick by brick.
    read_amplification : float
        Bytes fetched for each byte of the chunks needed.
    bytes_written, n_files : int
        Of the result with its pyramids, uncompressed, and of the record's files.
    seconds : float, optional
        Of the predict pass; None until some blocks were probed.
    """

    work_factor: float
    n_blocks: int
    n_tiles: int
    memory: Memory
    bytes_read: int
    chunks_distinct: int
    chunks_fetched: int
    read_amplification: float
    bytes_written: int
    n_files: int
    seconds: float | None = None

    @property
    def memory_worker(self) -> int:
        """Bytes that a worker needs."""
        return self.memory.total

    def to_json(self) -> dict[str, Any]:
        """Return plain numbers."""
        return {**asdict(self), "memory_worker": self.memory_worker}


def plan_figures(made: Plan, *, n_threads: int = 1, cache: int = CHUNK_CACHE_BYTES) -> Figures:
    """Work out what a plan takes: arithmetic on shapes, no loop over blocks.

    Parameters
    ----------
    n_threads : int
        Tiles that a worker runs at once.
    cache : int
        Bytes of decoded chunks that a worker keeps.
    """
    reads = [plan_reads(image, made.tiling_of(image)) for image in made.images]
    n_tiles = [count_tiles(made, image) for image in made.images]
    inputs = [math.prod(made.tiling_of(image).input_shape) for image in made.images]
    fetched = sum(r.bytes(b) for r, b in zip(reads, made.bricks, strict=True))
    n_bytes, n_files = plan_output(made)
    return Figures(
        work_factor=sum(n * v for n, v in zip(n_tiles, inputs, strict=True)) / _kept_voxels(made),
        n_blocks=len(made.grids),
        n_tiles=sum(n_tiles),
        memory=_plan_memory(made, reads, n_threads, cache),
        bytes_read=fetched,
        chunks_distinct=sum(r.chunks(r.all) for r in reads),
        chunks_fetched=sum(r.chunks(b) for r, b in zip(reads, made.bricks, strict=True)),
        read_amplification=fetched / sum(r.bytes(r.all) for r in reads),
        bytes_written=n_bytes,
        n_files=n_files,
    )


def _kept_voxels(made: Plan) -> int:
    return sum(image.domain.size for image in made.images)


def count_tiles(made: Plan, image: Image) -> int:
    """Return the number of tiles that all blocks of an image run."""
    tiling = made.tiling_of(image)
    lead = tiling.n_lead
    axes = zip(axes_of(tiling), image.tile[lead:], image.block[lead:], strict=True)
    return math.prod(image.domain.shape[:lead]) * math.prod(a.runs(t, b) for a, t, b in axes)


# Memory of a worker


def _plan_memory(made: Plan, reads: Sequence[Reads], n_threads: int, cache: int) -> Memory:
    network = weight_bytes(made.spec) + max(_tiles_at_once(made, i, n_threads) for i in made.images)
    blocks = max(_block_bytes(made, image, r) for image, r in zip(made.images, reads, strict=True))
    return Memory(
        base=BASE_BYTES,
        network=network,
        blocks=blocks,
        cache=min(cache, max(r.bytes(r.all) for r in reads)),
        heaps=min(_HEAPS_BYTES, network + blocks),
    )


def _tiles_at_once(made: Plan, image: Image, n_threads: int) -> int:
    """Return the bytes of the forward passes that a worker runs at once, no more than a block has tiles."""
    tiling = made.tiling_of(image)
    first = Box.of_shape(image.block).intersect(Box.of_shape(image.domain.shape)).shift(image.domain.start)
    return min(n_threads, tiling.count(first)) * forward_bytes(made.spec, tiling.input_shape)


def _block_bytes(made: Plan, image: Image, reads: Reads) -> int:
    """Return the bytes of raw voxels and results that a worker holds beside its tiles and chunks."""
    n_classes = made.spec.out_channels
    raw = reads.voxel_bytes * math.prod(axis.outer for axis in reads.axes)
    fetched = reads.voxel_bytes * math.prod(axis.widest(1) for axis in reads.axes)
    block = math.prod(min(b, n) for b, n in zip(image.block, image.domain.shape, strict=True))
    voxel = sum(n * size for n, size in _stored(made))
    tile = 4 * n_classes * math.prod(image.tile)
    blend = 4 * n_classes * block if made.settings.segment.mode == "blend" else 0
    # Computed and read ahead, with the chunks that this one takes; computed and written behind, with
    # the copy of a shard that is packed; probabilities of a tile, and the part of them that is kept.
    return 2 * raw + fetched + (2 * block + math.prod(image.shard)) * voxel + 2 * tile + blend


def _stored(made: Plan) -> list[tuple[int, int]]:
    """Return channels and bytes of a voxel of each array that the predict pass writes."""
    wanted = set(made.settings.segment.outputs)
    stored = []
    if "probabilities" in wanted:
        stored.append((made.spec.out_channels, np.dtype(made.settings.segment.dtype).itemsize))
    if wanted & {"classes", "instances"}:
        stored += [(1, 1)] * (made.spec.out_channels if made.facts["kind"] == "multilabel" else 1)
    return stored


# Files


def plan_output(made: Plan) -> tuple[int, int]:
    """Return the bytes of the result with its pyramids, uncompressed, and the number of its files."""
    arrays = [array for image in made.images for array in _arrays(made, image)]
    n_groups = 8 * len(made.images)
    return sum(n_bytes for n_bytes, _ in arrays), sum(n_files for _, n_files in arrays) + n_groups


def _arrays(made: Plan, image: Image) -> Iterator[tuple[int, int]]:
    """Yield bytes and files of each array of an output image, and of the fragments that lie there for a while."""
    from unetflow.storage.ngff import level_shapes

    volume = image.volume
    levels = [level.shape for level in level_shapes(image.domain.shape, volume.voxel_size, volume.spatial_axes)]
    for n_channels, itemsize in _stored(made):
        for shape in levels:
            yield _array(shape, image, n_channels, itemsize)
    if "instances" in made.settings.segment.outputs:
        for shape in [*levels, levels[0]]:
            yield _array(shape, image, 1, 4)


def _array(shape: Shape, image: Image, n_channels: int, itemsize: int) -> tuple[int, int]:
    from unetflow.storage.volume import CHANNELS_TOGETHER_BYTES

    is_together = math.prod(image.chunk) * n_channels * itemsize <= CHANNELS_TOGETHER_BYTES
    n_shards = math.prod(-(-n // s) for n, s in zip(shape, image.shard, strict=True))
    n_voxels = math.prod(shape)
    return n_voxels * n_channels * itemsize, n_shards * (1 if is_together else n_channels) + 1


# What it did cost


@dataclass
class Tally:
    """What the blocks of the predict pass report, added up.

    Parameters
    ----------
    made : Plan
    """

    made: Plan
    n_blocks: int = 0
    voxels_computed: int = 0
    bytes_read: int = 0
    chunks: int = 0
    peak: int = 0

    def __post_init__(self) -> None:
        self._inputs = [math.prod(self.made.tiling_of(image).input_shape) for image in self.made.images]
        self._pieces = self.made.grids

    def add(self, number: int, report: Report) -> None:
        """Take the report of a block; a restart hands over the old ones too."""
        self.n_blocks += 1
        self.voxels_computed += report.get("tiles", 0) * self._inputs[self._pieces.locate(number)[0]]
        self.bytes_read += report.get("fetched", 0)
        self.chunks += report.get("chunks", 0)
        self.peak = max(self.peak, report.get("peak", 0))


def compare(planned: Figures, tally: Tally, seconds: float) -> dict[str, dict[str, Any]]:
    """Set what was planned beside what was measured.

    Parameters
    ----------
    seconds : float
        That the predict pass took.

    Returns
    -------
    dict
        ``planned`` and ``real``, each with ``bytes_read``, ``chunks``, ``memory_worker``, ``seconds`` and
        ``work_factor``.
    """
    return {
        "planned": {
            "bytes_read": planned.bytes_read,
            "chunks": planned.chunks_fetched,
            "memory_worker": planned.memory_worker,
            "seconds": planned.seconds,
            "work_factor": round(planned.work_factor, 3),
        },
        "real": {
            "bytes_read": tally.bytes_read,
            "chunks": tally.chunks,
            "memory_worker": tally.peak,
            "seconds": round(seconds, 3),
            "work_factor": round(tally.voxels_computed / _kept_voxels(tally.made), 3),
        },
    }

