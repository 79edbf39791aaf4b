"""Read random blocks of a finished conversion again, from both sides, and compare."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import StageError
from unetflow.geometry import Block, Box
from unetflow.stages.pieces import Pieces, Some

if TYPE_CHECKING:
    from unetflow.stages.sources import Readable
    from unetflow.stages.work import Report
    from unetflow.storage.volume import Volume

N_CHECKED = 8
MOST_VOXELS = 2**22  # of a block that are compared: some hundredths of a second


@dataclass(frozen=True)
class CompareBlock:
    """Compare a random part of one block with its source."""

    images: tuple[Readable, ...]
    targets: tuple[Volume, ...]
    pieces: Pieces
    seed: int

    def __call__(self, block: Block) -> Report:
        """Read both, and report how many voxels differ."""
        index, here = self.pieces.locate(block.number)
        box = part_of(here.inner, np.random.default_rng([self.seed, block.number]))
        stored = self.targets[index].read(box)
        wanted = self.images[index].read(box).astype(stored.dtype, copy=False)
        n_differing = int(np.count_nonzero(differs(stored, wanted)))
        return {"image": index, "box": [list(box.start), list(box.stop)], "differing": n_differing}


def choose_blocks(pieces: Pieces, seed: int) -> Some:
    """Draw up to eight blocks, the same for the same seed."""
    n = min(N_CHECKED, len(pieces))
    rng = np.random.default_rng(seed)
    return Some(pieces, np.sort(rng.choice(len(pieces), n, replace=False)).astype(np.int64))


def part_of(box: Box, rng: np.random.Generator) -> Box:
    """Halve the longest axis at random until a box is small.

    Examples
    --------
    >>> part_of(Box.of_shape((64, 4096, 4096)), np.random.default_rng(0)).shape
    (64, 256, 256)
    """
    start, stop = list(box.start), list(box.stop)
    while np.prod([b - a for a, b in zip(start, stop, strict=True)]) > MOST_VOXELS:
        axis = int(np.argmax([b - a for a, b in zip(start, stop, strict=True)]))
        middle = (start[axis] + stop[axis]) // 2
        if rng.random() < 0.5:
            stop[axis] = middle
        else:
            start[axis] = middle
    return Box(tuple(start), tuple(stop))


def differs(stored: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Say of each voxel whether two arrays differ there; NaN equals NaN."""
    unequal = stored != wanted
    if stored.dtype.kind == "f":
        unequal &= ~(np.isnan(stored) & np.isnan(wanted))
    return np.asarray(unequal, np.bool_)


def fail_where_different(found: dict[int, Report], source: str, targets: tuple[Volume, ...]) -> None:
    """Name the first block that is not what the source holds.

    Raises
    ------
    StageError
        If there is one.
    """
    for number, report in sorted(found.items()):
        if report["differing"]:
            raise StageError(
                f"convert: what was written must equal its source, but {report['differing']} voxels of block {number} "
                f"(box {report['box'][0]} to {report['box'][1]} of {targets[report['image']].path}) differ from "
                f"{source}; it changed meanwhile, or a disk is damaged: give the same command with --overwrite"
            )
