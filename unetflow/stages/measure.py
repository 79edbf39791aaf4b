"""Statistics of whole volumes: a histogram from every chunk, or from 1,000 chosen by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.errors import InputError
from unetflow.geometry import Block, BlockGrid, Shape
from unetflow.stages.inspection import inspect_box
from unetflow.stages.pieces import Pieces

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume

MOST_CHUNKS = 1000
_VOXELS_A_BLOCK = 2**24


@dataclass(frozen=True)
class Sample:
    """The chunks of one volume that are measured, gathered into blocks of neighbours.

    Up to 1,000 chunks: all of them, several a block. More: 1,000 chosen by seed, one a block.
    """

    grid: BlockGrid
    chosen: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.grid) if self.chosen is None else len(self.chosen)

    def __getitem__(self, number: int) -> Block:
        if not 0 <= number < len(self):
            raise IndexError(f"block {number} of {len(self)}")
        block = self.grid[number if self.chosen is None else self.chosen[number]]
        return Block(number, block.inner, block.outer)

    def __iter__(self) -> Iterator[Block]:
        return (self[number] for number in range(len(self)))


def plan_sample(volume: Volume, seed: int) -> Sample:
    """Choose the chunks of a volume that are measured."""
    unit = volume.shard or volume.chunk
    n_units = len(BlockGrid(volume.box, unit))
    chunks = BlockGrid(volume.box, volume.chunk)
    if n_units <= MOST_CHUNKS or len(chunks) <= MOST_CHUNKS:
        return Sample(BlockGrid(volume.box, _gather(unit, volume.shape)), None)
    # Drawing without listing all chunks: distinct numbers, whatever the size of the volume.
    rng = np.random.default_rng([seed, 1])
    chosen: set[int] = set()
    while len(chosen) < MOST_CHUNKS:
        chosen.add(int(rng.integers(len(chunks))))
    return Sample(chunks, tuple(sorted(chosen)))


def _gather(unit: Shape, shape: Shape) -> Shape:
    """Grow a block from whole units until it is worth a task."""
    block = list(unit)
    for axis in reversed(range(len(shape))):
        while block[axis] < shape[axis] and np.prod(block) * 2 <= _VOXELS_A_BLOCK:
            block[axis] *= 2
    return tuple(block)


@dataclass(frozen=True)
class MeasureBlock:
    """Count the intensities of one block, per channel."""

    volumes: tuple[Volume, ...]
    samples: Pieces

    def inspect(self, block: Block) -> Report:
        """Say what the block's voxels are."""
        index, here = self.samples.locate(block.number)
        return inspect_box(self.volumes[index], here.inner)

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.intensity import histogram

        index, here = self.samples.locate(block.number)
        image = self.volumes[index].read(here.inner)
        return {"volume": index, "box": str(here.inner), "channels": [histogram(c).to_json() for c in image]}


def measure_volumes(work: Work, volumes: Sequence[Volume], seed: int, name: str = "measure") -> list[list[Any]]:
    """Return a histogram of each channel of each volume.

    Raises
    ------
    InputError
        If a volume holds NaN or infinite voxels; the block is named.
    """
    from unetflow.numerics.intensity import Histogram, add

    pieces = Pieces(tuple(plan_sample(v, seed) for v in volumes))
    totals: list[list[Any]] = [[] for _ in volumes]

    def collect(number: int, report: Report) -> None:
        index = report["volume"]
        counts = [Histogram.from_json(record) for record in report["channels"]]
        if any(c.n_invalid for c in counts):
            raise InputError(
                f"intensities must be finite, got {sum(c.n_invalid for c in counts)} NaN or infinite voxels in "
                f"{volumes[index].path} within {report['box']}; replace them first"
            )
        totals[index] = [add(a, b) for a, b in zip(totals[index], counts, strict=True)] if totals[index] else counts

    work.run_pass(name, MeasureBlock(tuple(volumes), pieces), pieces, collect)
    return totals


def normalisation_of(histograms: Sequence[Any], method: str) -> tuple[list[float], list[float]]:
    """Return offset and scale per channel."""
    from unetflow.numerics.intensity import normalisation

    pairs = [normalisation(h, method) for h in histograms]
    return [float(o) for o, _ in pairs], [float(s) for _, s in pairs]
