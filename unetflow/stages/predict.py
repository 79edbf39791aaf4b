"""The predict pass: read a block with its context, run tiles, write what is kept.

::

    load      mask, raw voxels of all tiles, mirrored      reader thread, a block ahead
    compute   tile -> normalise -> network -> quantise     the task (resampled before and after, where voxels differ)
    store     probabilities, classes                       writer thread, a block behind
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, Box, Shape
from unetflow.memory import peak_memory
from unetflow.stages.inspection import inspect_box
from unetflow.stages.masks import Mask
from unetflow.stages.outputs import Output
from unetflow.stages.pieces import Pieces
from unetflow.stages.resampled import Resampled
from unetflow.stages.tile_runner import Array, Float32, Loaded, Normalisation, TileRunner, hull, kept_for
from unetflow.stages.tiles import Tile, Tiling
from unetflow.stages.work import Report

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume


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
    ratio : tuple of float
        Length of a voxel that the network sees in voxels of the volume, per grid axis; empty where it sees these.
    """

    name: str
    volume: Volume
    mask: Mask | None
    domain: Box
    tile: Shape
    chunk: Shape
    shard: Shape
    block: Shape
    ratio: tuple[float, ...] = ()

    @property
    def seen(self) -> Volume | Resampled:
        """What the network sees."""
        return Resampled(self.volume, self.ratio) if self.ratio else self.volume


@dataclass(frozen=True)
class Predicted:
    """What a block is written as: ``(K, ...)`` probabilities as they are stored, and class images."""

    probabilities: Array | None
    classes: list[npt.NDArray[np.uint8]]
    n_tiles: int
    n_passes: int
    began: float
    seconds: float
    precision: str


@dataclass(frozen=True)
class PredictBlock:
    """Predict one block and write probabilities and classes.

    Parameters
    ----------
    token : str
        Names the pass: what a process keeps for it (chunks, answers) serves no other.
    cache : int
        Bytes of decoded chunks that a process keeps.
    batch : int
        Tiles of a forward pass on a GPU.
    threads : int, optional
        Tiles at once on a CPU; absent: the worker's share of the cores.
    """

    model: str
    model_digest: str
    images: tuple[Image, ...]
    tilings: tuple[Tiling, ...]
    outputs: tuple[Output, ...]
    pieces: Pieces
    normalisation: tuple[Normalisation, ...]
    threshold: float
    token: str
    cache: int
    batch: int = 1
    threads: int | None = None

    def gently(self) -> PredictBlock:
        """Return the task with one tile at a time: what a worker died of may fit then."""
        return replace(self, batch=1, threads=1, cache=0)

    def inspect(self, block: Block) -> Report:
        """Say what the block's own voxels are, for whoever looks into a failure."""
        index, here = self.pieces.locate(block.number)
        image = self.images[index]
        return inspect_box(image.volume, here.inner.shift(image.domain.start))

    def __call__(self, block: Block) -> Report:
        return self.store(block, self.compute(block, self.load(block)))

    def load(self, block: Block) -> Loaded:
        """Read what the block's tiles see, chunks of neighbours from the cache."""
        index, here = self.pieces.locate(block.number)
        image = self.images[index]
        box = here.inner.shift(image.domain.start)
        inside = None if image.mask is None else image.mask.read(box)
        tiles = [t for t in self.tilings[index].touching(box) if inside is None or _holds(inside, box, t)]
        if not tiles:
            return Loaded([], box, np.zeros(0, image.seen.dtype), inside)
        outer = hull([tile.source for tile in tiles])
        raw = image.seen.read_mirrored(outer, cache=kept_for(self.token, self.cache).chunks)
        return Loaded(tiles, outer, raw, inside)

    def compute(self, block: Block, loaded: Loaded) -> Predicted:
        """Run the tiles."""
        began, started = time.time(), time.monotonic()
        index, here = self.pieces.locate(block.number)
        image, output, tiling = self.images[index], self.outputs[index], self.tilings[index]
        predictor = load_predictor(self.model, self.model_digest)
        runner = TileRunner(
            predictor, tiling, self.normalisation[index], image.volume.fill_value,
            kept_for(self.token, self.cache), self.batch, self.threads,
        )  # fmt: skip
        head, n_channels = predictor.spec.head, len(output.classes)
        dtype = output.probabilities[0].dtype if output.probabilities else None
        box = here.inner.shift(image.domain.start)
        kept = None if dtype is None else np.zeros((predictor.spec.out_channels, *box.shape), dtype)
        classes = [np.zeros(box.shape, np.uint8) for _ in output.classes]
        for part, p in runner.parts(loaded, box):
            at = part.relative_to(box).slices
            if loaded.inside is not None:
                p = p * loaded.inside[at]
            if kept is not None and dtype is not None:
                kept[(slice(None), *at)] = quantise(p, dtype)
            for channel, image_of_classes in enumerate(classes):
                image_of_classes[at] = choose_classes(p, head, self.threshold, channel, n_channels)
                if loaded.inside is not None:
                    image_of_classes[at] *= loaded.inside[at]
        seconds = time.monotonic() - started
        return Predicted(
            kept, classes, len(loaded.tiles), runner.n_passes, began, seconds, predictor.precision
        )

    def store(self, block: Block, done: Predicted) -> Report:
        """Write whole shards, and tell what it took."""
        index, here = self.pieces.locate(block.number)
        output = self.outputs[index]
        if done.n_tiles:
            if done.probabilities is not None:
                output.probabilities[0].write(here.inner, done.probabilities)
            for classes, levels in zip(done.classes, output.classes, strict=True):
                levels[0].write(here.inner, classes)
        chunks = kept_for(self.token, self.cache).chunks
        return {
            "tiles": done.n_tiles,
            "passes": done.n_passes,
            **chunks.take_counts(),
            "peak": peak_memory(),
            "seconds": round(done.seconds, 3),
            "began": round(done.began, 2),
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            **({} if done.precision == "float32" else {"precision": done.precision}),
        }


def _holds(inside: npt.NDArray[np.bool_], box: Box, tile: Tile) -> bool:
    return bool(inside[tile.kept.intersect(box).relative_to(box).slices].any())


def quantise(p: Float32, dtype: str) -> Array:
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
