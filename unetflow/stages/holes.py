"""Fill the holes of objects, whatever the cut.

A *hole* is a component, by faces, of what is no object that touches no border of the volume along the
axes that objects hang together on: `scipy.ndimage.binary_fill_holes` of the whole volume, or plane by
plane. Background is labelled as objects are; a pass then writes classes with holes as foreground.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, Box
from unetflow.stages.component_blocks import Keep
from unetflow.stages.components import Foreground, Labelling, is_foreground, label_volumes
from unetflow.stages.pieces import Pieces

if TYPE_CHECKING:
    from unetflow.stages.work import Report, Work
    from unetflow.storage.volume import Volume


@dataclass(frozen=True)
class FillBlock:
    """Write the foreground of one block with its holes filled."""

    holes: tuple[Labelling, ...]
    filled: tuple[Volume, ...]
    pieces: Pieces
    foreground: Foreground

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        index, here = self.pieces.locate(block.number)
        job = self.holes[index]
        filled = self.foreground(job.source, here.inner) | (job.target.read(here.inner)[0] > 0)
        self.filled[index].write(here.inner, filled.astype(np.uint8))
        return {}


def fill_holes(
    work: Work,
    holes: tuple[Labelling, ...],
    filled: tuple[Volume, ...],
    most: int | None,
    scratch: str,
    foreground: Foreground = is_foreground,
) -> None:
    """Write the foreground as 1, with holes of at most ``most`` voxels (None: all) filled.

    Parameters
    ----------
    holes : tuple of Labelling
        The classes, and temporary ids for their background. Every block is looked at: what is not stored
        is background too.
    filled : tuple of Volume
        uint8, written here.
    """

    def passes() -> None:
        keep = Keep(max_size=most, inside_only=True)
        label_volumes(
            work, holes, Background(foreground), connectivity="face", keep=keep, scratch=scratch, prefix="hole-"
        )
        pieces = Pieces(tuple(job.grid for job in holes))
        work.run_pass("fill", FillBlock(holes, filled, pieces, foreground), pieces)

    work.once("filled", passes)


@dataclass(frozen=True)
class Background:
    """Where there is no foreground."""

    foreground: Foreground

    def __call__(self, volume: Volume, box: Box) -> npt.NDArray[np.bool_]:
        """Read one box."""
        return ~self.foreground(volume, box)
