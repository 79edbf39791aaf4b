"""The predict pass: read a block with its context, run tiles, write what is kept.

::

    volume      ...|  tile  |  tile  |  tile  |...     a fixed grid from the volume's origin
    block             [------inner------]              any cut; tiles that touch it are run
    tile          <-halo-[  kept  ]-halo->             kept voxels see no artificial padding
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.architecture import UNetSpec
from unetflow.geometry import Block, BlockGrid, Box, Shape
from unetflow.stages.outputs import Output
from unetflow.stages.pieces import Pieces
from unetflow.stages.work import Report

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Image:
    """One image to segment.

    Parameters
    ----------
    domain : Box
        What is segmented, in voxels of the volume.
    tile : tuple of int
        Kept voxels of a forward pass per grid axis (1 along axes the network does not see).
    chunk, shard : tuple of int
        Of the outputs, per grid axis.
    block : tuple of int
        What one unit of work writes, per grid axis: whole shards, and whole tiles where they fit.
    """

    name: str
    volume: Volume
    mask: Volume | None
    domain: Box
    tile: Shape
    chunk: Shape
    shard: Shape
    block: Shape


@dataclass(frozen=True)
class PredictBlock:
    """Predict one block and write probabilities and classes."""

    model: str
    model_digest: str
    images: tuple[Image, ...]
    outputs: tuple[Output, ...]
    pieces: Pieces
    normalisation: tuple[tuple[list[float], list[float]], ...]
    threshold: float
    tta: bool

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        index, here = self.pieces.locate(block.number)
        image, output = self.images[index], self.outputs[index]
        box = here.inner.shift(image.domain.start)
        inside = None if image.mask is None else image.mask.read(box)[0] > 0
        if inside is not None and not inside.any():
            return {"tiles": 0}
        predictor = load_predictor(self.model, self.model_digest)
        p, n_tiles = predict_box(
            predictor, predictor.spec, image.volume, box, image.tile, self.normalisation[index], tta=self.tta
        )
        if inside is not None:
            p = p * inside
        if output.probabilities:
            top = output.probabilities[0]
            top.write(here.inner, quantise(p, top.dtype))
        for channel, levels in enumerate(output.classes):
            classes = choose_classes(p, predictor.spec.head, self.threshold, channel, len(output.classes))
            levels[0].write(here.inner, classes if inside is None else classes * inside)
        return {"tiles": n_tiles}


def predict_box(
    predictor: Any,
    spec: UNetSpec,
    volume: Volume,
    box: Box,
    tile: Shape,
    normalisation: tuple[list[float], list[float]],
    *,
    tta: bool = False,
) -> tuple[Float32, int]:
    """Return the probabilities of any box of a volume, and the number of tiles run.

    Parameters
    ----------
    box : Box
        In voxels of the volume, inside it.

    Returns
    -------
    probabilities : ndarray of float32, shape (K, *box.shape)
    n_tiles : int

    Notes
    -----
    The tiles are those of the volume's own grid, so the values do not depend on ``box``.
    """
    from unetflow.runtime.environment import threads_of_a_task

    n_lead = box.ndim - spec.dims
    grid = BlockGrid(volume.box, tile)
    halo = spec.symmetric_halo if tta else spec.halo
    margin = tuple(b - m for b, m in zip(halo[0], spec.margin, strict=True))
    length = (1,) * n_lead + spec.tile_input(tile[n_lead:], symmetric=tta)
    shape = TileShape((0,) * n_lead + halo[0], length)
    result: Float32 | None = None
    n_tiles = 0
    starts: deque[Shape] = deque()

    def images() -> Iterator[Float32]:
        for start, image in _tile_inputs(shape, volume, grid, box, n_lead, normalisation):
            starts.append(start)
            yield image

    for p in predictor.each(images(), tta=tta, threads=threads_of_a_task()):
        start = starts.popleft()
        kept = Box(start, tuple(a + t for a, t in zip(start, tile, strict=True)))
        part = kept.intersect(box)
        if result is None:
            result = np.empty((len(p), *box.shape), np.float32)
        inner = part.relative_to(kept)
        seen = inner.shift((0,) * n_lead + margin).slices[n_lead:]
        result[(slice(None), *part.relative_to(box).slices)] = p[(slice(None), *seen)].reshape(len(p), *part.shape)
        n_tiles += 1
    assert result is not None
    return result, n_tiles


@dataclass(frozen=True)
class TileShape:
    """Context before the kept voxels, and the input's length, per grid axis."""

    before: Shape
    length: Shape


def _tile_inputs(
    shape: TileShape,
    volume: Volume,
    grid: BlockGrid,
    box: Box,
    n_lead: int,
    normalisation: tuple[list[float], list[float]],
) -> Iterator[tuple[Shape, Float32]]:
    """Yield the start of each tile's kept voxels and its normalised input ``(C, *S)``."""
    back = tuple(-b for b in shape.before)
    for plane in _planes(box, n_lead):
        tiles = [tile.inner.start for tile in grid.touching(plane)]
        inputs = [
            Box(start, tuple(a + n for a, n in zip(start, shape.length, strict=True))).shift(back)
            for start in tiles
        ]
        outer = Box(
            tuple(min(i.start[a] for i in inputs) for a in range(box.ndim)),
            tuple(max(i.stop[a] for i in inputs) for a in range(box.ndim)),
        )
        image = normalise_channels(volume.read_mirrored(outer), normalisation)
        for start, needed in zip(tiles, inputs, strict=True):
            part = image[(slice(None), *needed.relative_to(outer).slices)]
            yield start, part.reshape(len(part), *part.shape[1 + n_lead :])


def _planes(box: Box, n_lead: int) -> Iterator[Box]:
    """Cut a box into single planes along the axes that the network does not see."""
    plane = (1,) * n_lead + tuple(max(1, n) for n in box.shape[n_lead:])
    return (block.inner for block in BlockGrid(box, plane))


def normalise_channels(image: npt.NDArray[Any], normalisation: tuple[list[float], list[float]]) -> Float32:
    """Normalise ``(C, ...)`` with an offset and a scale per channel."""
    from unetflow.numerics.intensity import normalise

    return np.stack([normalise(c, o, s) for c, o, s in zip(image, *normalisation, strict=True)])


def quantise(p: Float32, dtype: str) -> npt.NDArray[Any]:
    """Store probabilities: uint8 is p * 255, rounded to nearest; floats as they are."""
    if dtype == "uint8":
        return np.asarray(np.rint(p * np.float32(255)), np.uint8)
    return np.asarray(p, dtype)


def choose_classes(p: Float32, head: str, threshold: float, channel: int, n_channels: int) -> npt.NDArray[np.uint8]:
    """Choose the class of each voxel from unrounded probabilities ``(K, ...)``.

    Two classes: 1 where p1 is above the threshold. More: the largest, ties to the lower.
    Multilabel (several label images): 1 where this channel is above the threshold.
    """
    if head == "sigmoid" or n_channels > 1:
        return np.asarray(p[channel] > threshold, np.uint8)
    if len(p) == 2:
        return np.asarray(p[1] > threshold, np.uint8)
    return np.asarray(p.argmax(0), np.uint8)


@lru_cache(maxsize=2)
def load_predictor(path: str, digest: str) -> Any:
    """Load a model once per process."""
    from unetflow.nn.checkpoint import load_model
    from unetflow.nn.predict import Predictor

    return Predictor(load_model(path)[0])
