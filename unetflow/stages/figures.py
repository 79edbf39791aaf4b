"""What a segmentation costs, worked out before it runs, and what it did cost: the two side by side.

Arithmetic on shapes: nothing here loops over blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from unetflow.geometry import Shape
from unetflow.stages.bricks import CHUNK_CACHE_BYTES, plan_reads
from unetflow.stages.tile_axis import axes_of
from unetflow.stages.worker_memory import Memory, plan_memory, stored_arrays

if TYPE_CHECKING:
    from unetflow.stages.predict import Image
    from unetflow.stages.segment_plan import Plan
    from unetflow.stages.work import Report


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
    share = len(made.blocks) / len(made.grids)
    return Figures(
        work_factor=share * sum(n * v for n, v in zip(n_tiles, inputs, strict=True)) / max(1.0, _kept_voxels(made)),
        n_blocks=len(made.blocks),
        n_tiles=round(share * sum(n_tiles)),
        memory=plan_memory(made, reads, n_threads, cache),
        bytes_read=round(share * fetched),
        chunks_distinct=round(share * sum(r.chunks(r.all) for r in reads)),
        chunks_fetched=round(share * sum(r.chunks(b) for r, b in zip(reads, made.bricks, strict=True))),
        read_amplification=fetched / sum(r.bytes(r.all) for r in reads),
        bytes_written=n_bytes,
        n_files=n_files,
    )


def _kept_voxels(made: Plan) -> float:
    """Return the voxels of the blocks that get a task, as a share of all."""
    return len(made.blocks) / len(made.grids) * sum(image.domain.size for image in made.images)


def count_tiles(made: Plan, image: Image) -> int:
    """Return the number of tiles that all blocks of an image run."""
    tiling = made.tiling_of(image)
    lead = tiling.n_lead
    axes = zip(axes_of(tiling), image.tile[lead:], image.block[lead:], strict=True)
    return math.prod(image.domain.shape[:lead]) * math.prod(a.runs(t, b) for a, t, b in axes)


# Files


def plan_output(made: Plan) -> tuple[int, int]:
    """Return the bytes of the result with its pyramids, uncompressed, and the number of its files.

    Nothing is stored outside a mask: of all voxels the share counts that the blocks inside it have.
    """
    arrays = [array for image in made.images for array in _arrays(made, image)]
    n_groups = 8 * len(made.images)
    share = len(made.blocks) / len(made.grids)
    return round(share * sum(n for n, _ in arrays)), round(share * sum(n for _, n in arrays)) + n_groups


def _arrays(made: Plan, image: Image) -> Iterator[tuple[int, int]]:
    """Yield bytes and files of each array of an output image, and of the fragments that lie there for a while."""
    from unetflow.storage.ngff import level_shapes

    volume = image.volume
    levels = [level.shape for level in level_shapes(image.domain.shape, volume.voxel_size, volume.spatial_axes)]
    for n_channels, itemsize in stored_arrays(made):
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


# Blocks from which a run estimates its own time, as --plan does.
_PROBED = 3


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
    probed: list[float] = field(default_factory=list)

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
        if len(self.probed) < _PROBED and "seconds" in report:
            self.probed.append(report["seconds"])

    def estimate(self, n_blocks: int, n_workers: int) -> float | None:
        """Return the seconds that so many blocks take, from the first ones; None where there were none."""
        if not self.probed:
            return None
        return round(sum(self.probed) / len(self.probed) * -(-n_blocks // n_workers), 3)


def compare(
    planned: Figures, tally: Tally, seconds: float, *, n_blocks: int, n_workers: int
) -> dict[str, dict[str, Any]]:
    """Set what was planned beside what was measured.

    Parameters
    ----------
    seconds : float
        That the predict pass took.
    n_blocks, n_workers : int
        That it did, and that did them: what its first three blocks took, for all.

    Returns
    -------
    dict
        ``planned`` and ``real``, each with ``bytes_read``, ``chunks``, ``memory_worker`` and ``work_factor``.
        ``real`` has ``seconds``; ``planned`` has ``seconds_from_first_blocks``, which is no forecast: that of
        ``--plan`` is told before the run.
    """
    return {
        "planned": {
            "bytes_read": planned.bytes_read,
            "chunks": planned.chunks_fetched,
            "memory_worker": planned.memory_worker,
            "seconds_from_first_blocks": tally.estimate(n_blocks, n_workers),
            "work_factor": round(planned.work_factor, 3),
        },
        "real": {
            "bytes_read": tally.bytes_read,
            "chunks": tally.chunks,
            "memory_worker": tally.peak,
            "seconds": round(seconds, 3),
            "work_factor": round(tally.voxels_computed / max(1.0, _kept_voxels(tally.made)), 3),
        },
    }

