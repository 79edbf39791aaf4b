"""Run the tiles of a block through the network: one by one, blended, or from memory where nothing is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box, Shape
from unetflow.stages.tiles import Tile, Tiling

if TYPE_CHECKING:
    from unetflow.storage.chunks import ChunkCache

Array = npt.NDArray[Any]
Float32 = npt.NDArray[np.float32]
Normalisation = tuple[list[float], list[float]]


@dataclass(frozen=True)
class Loaded:
    """What a block needs: its tiles, the raw voxels of all of them, and where it is inside the mask."""

    tiles: list[Tile]
    outer: Box
    raw: Array
    inside: npt.NDArray[np.bool_] | None


@dataclass(frozen=True)
class Kept:
    """What a process keeps for one pass: decoded chunks, and what the network says of emptiness."""

    chunks: ChunkCache
    answers: dict[tuple[Shape, str], Float32]


@lru_cache(maxsize=1)
def kept_for(token: str, budget: int) -> Kept:
    """Return what this process keeps for a pass; what it kept for another is forgotten."""
    from unetflow.storage.chunks import ChunkCache

    return Kept(ChunkCache(budget), {})


class TileRunner:
    """Runs the tiles of a block through the network.

    Attributes
    ----------
    n_passes : int
        Forward passes so far; a tile of nothing but fill value costs one a process, not one each.
    """

    def __init__(
        self,
        predictor: Any,
        tiling: Tiling,
        normalisation: Normalisation,
        fill_value: float,
        kept: Kept,
        batch: int = 1,
        threads: int | None = None,
    ) -> None:
        self.predictor, self.tiling, self.normalisation = predictor, tiling, normalisation
        self.fill_value, self.kept, self.batch, self.threads = fill_value, kept, batch, threads
        self.n_passes = 0

    def parts(self, loaded: Loaded, box: Box) -> Iterator[tuple[Box, Float32]]:
        """Yield parts of a box and their probabilities ``(K, *part.shape)``; together they fill the tiles."""
        if self.tiling.mode == "exact":
            for tile, p in self._run(loaded):
                part = tile.kept.intersect(box)
                yield part, self._cut(p, tile, part)
        elif loaded.tiles:
            total: Float32 | None = None
            for tile, p in self._run(loaded):
                part = tile.kept.intersect(box)
                weighed = self._cut(p, tile, part)
                for axis, weight in enumerate(self.tiling.weights(tile, part)):
                    weighed = weighed * weight.reshape([-1 if a == axis + 1 else 1 for a in range(weighed.ndim)])
                total = np.zeros((len(p), *box.shape), np.float32) if total is None else total
                total[(slice(None), *part.relative_to(box).slices)] += weighed
            assert total is not None
            yield box, total

    def _run(self, loaded: Loaded) -> Iterator[tuple[Tile, Float32]]:
        """Yield each tile's probabilities over what it makes, ``(K, *tile.made.shape)``."""
        from unetflow.runtime.environment import threads_of_a_task

        # In order: what stands here waits for the network, or for nothing where the answer is known.
        waiting: list[tuple[Tile, bool]] = []

        def inputs() -> Iterator[Float32]:
            for tile in loaded.tiles:
                raw = loaded.raw[(slice(None), *tile.source.relative_to(loaded.outer).slices)]
                is_empty = bool((raw[..., :1] == self.fill_value).all()) and bool((raw == self.fill_value).all())
                waiting.append((tile, is_empty))
                if not is_empty:
                    self.n_passes += 1
                    yield self._normalised(raw)

        def over(tile: Tile, p: Float32) -> tuple[Tile, Float32]:
            return tile, p[(slice(None), *tile.seen)].reshape(len(p), *tile.made.shape)

        threads = self.threads or threads_of_a_task()
        for p in self.predictor.each(inputs(), tta=self.tiling.tta, threads=threads, batch=self.batch):
            while waiting[0][1]:
                yield over(waiting.pop(0)[0], self._answer_of_nothing(loaded))
            yield over(waiting.pop(0)[0], p)
        for tile, is_empty in waiting:
            assert is_empty
            yield over(tile, self._answer_of_nothing(loaded))

    def _cut(self, p: Float32, tile: Tile, part: Box) -> Float32:
        """Return the probabilities of a part of what a tile keeps, in voxels of the volume."""
        if not self.tiling.is_rescaled:
            return p[(slice(None), *part.relative_to(tile.kept).slices)]
        from unetflow.numerics.rescale import rescale

        means = rescale(p, tile.made, part, [1 / r for r in self.tiling.ratio])
        return np.clip(means, 0, 1, out=means)  # as are all means of probabilities but for the last bit

    def _normalised(self, raw: Array) -> Float32:
        """Return one tile's input ``(C, *S)``."""
        return normalise_channels(raw.reshape(len(raw), *raw.shape[1 + self.tiling.n_lead :]), self.normalisation)

    def _answer_of_nothing(self, loaded: Loaded) -> Float32:
        """Return what the network says of a tile that holds fill value only: computed once a process."""
        key = (self.tiling.input_shape, str(self.normalisation))
        if key not in self.kept.answers:
            raw = np.full((len(loaded.raw), *self.tiling.input_shape), self.fill_value, loaded.raw.dtype)
            image = normalise_channels(raw, self.normalisation)
            [self.kept.answers[key]] = self.predictor.each([image], tta=self.tiling.tta, batch=self.batch)
            self.n_passes += 1
        return self.kept.answers[key]


def hull(boxes: list[Box]) -> Box:
    """Return the smallest box that holds all of some boxes."""
    axes = range(boxes[0].ndim)
    return Box(tuple(min(b.start[a] for b in boxes) for a in axes), tuple(max(b.stop[a] for b in boxes) for a in axes))


def normalise_channels(image: Array, normalisation: Normalisation) -> Float32:
    """Normalise ``(C, ...)`` with an offset and a scale per channel."""
    from unetflow.numerics.intensity import normalise

    return np.stack([normalise(c, o, s) for c, o, s in zip(image, *normalisation, strict=True)])
