"""Pass 1 over labels: class counts, and where patches may be centred.

Centres are drawn without a list of all voxels: each voxel has a random rank that depends on the
seed and its place alone, and the voxels of lowest rank of each class are kept. Where label
chunks are missing, the background is drawn from a stream of random places instead, for nobody
shall look at voxels that are not there. Both are the same for any cut into blocks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, Box, Shape
from unetflow.stages.packing import pack
from unetflow.stages.pieces import Pieces
from unetflow.stages.split import Split
from unetflow.stages.truth import Truth
from unetflow.stages.work import Report

Unsigned = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

# Tiles of the validation region that are kept for the choice, of any kind and with foreground.
MOST_TILES = 200
_ANYWHERE = -1
_CENTRES, _STREAM, _TILES = 3, 6, 7


@dataclass(frozen=True)
class CountBlock:
    """Count the classes of one block; draw centres for training and tiles for validation.

    Parameters
    ----------
    n_wanted : int
        Centres of each class.
    tile : tuple of int
        Shape of a validation tile in label voxels, per grid axis.
    streamed : tuple of bool
        Images whose background comes from the stream, for chunks of theirs are missing.
    """

    truths: tuple[Truth, ...]
    splits: tuple[Split, ...]
    pieces: Pieces
    seed: int
    n_wanted: int
    tile: Shape
    streamed: tuple[bool, ...]

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        index, here = self.pieces.locate(block.number)
        truth, split, box = self.truths[index], self.splits[index], here.inner
        target, is_valid = truth.read(box)
        report: Report = {"volume": index, "valid": int(is_valid.sum()), "counts": {}, "centres": {}, "tiles": {}}
        if truth.item.data.role == "train":
            report["counts"] = _counts(target, is_valid, truth.is_multilabel)
        may_train = is_valid & _mask_of(split.train, box)
        if may_train.any():
            report["centres"] = {
                str(value): [pack(ranks), pack(places)]
                for value, (ranks, places) in self._centres(index, target, may_train, box)
            }
        if split.validation is not None:
            report["tiles"] = self._tiles(index, target, is_valid, box)
        return report

    def _centres(
        self, index: int, target: Any, allowed: Any, box: Box
    ) -> Iterator[tuple[int, tuple[Unsigned, Unsigned]]]:
        """Yield each class and its voxels of lowest rank; -1 stands for anywhere where classes overlap."""
        truth, streamed = self.truths[index], self.streamed[index]
        key = _key(self.seed, _CENTRES, index)

        def lowest(classes: Any, where: Any) -> dict[int, tuple[Unsigned, Unsigned]]:
            from unetflow.numerics.sampling import lowest_ranked

            return lowest_ranked(classes, where, box.start, truth.item.labels.shape, key, self.n_wanted)

        if truth.is_multilabel:
            if not streamed:
                yield _ANYWHERE, lowest(np.zeros(box.shape, np.uint8), allowed)[0]
            for value, mask in enumerate(target):
                for found in lowest(mask, allowed & (mask > 0)).values():
                    yield value, found
        else:
            yield from lowest(target, allowed & (target > 0) if streamed else allowed).items()
        if streamed:
            empty = allowed if truth.is_multilabel else allowed & (target == 0)
            yield (_ANYWHERE if truth.is_multilabel else 0), self._streamed(index, empty, box)

    def _streamed(self, index: int, allowed: Any, box: Box) -> tuple[Unsigned, Unsigned]:
        """Return the places of the stream that fall on allowed voxels of a box."""
        places, ranks = self.stream(index)
        inside = ((places >= box.start) & (places < box.stop)).all(axis=1)
        places, ranks = places[inside], ranks[inside]
        chosen = allowed[tuple((places - box.start).T)]
        linear = np.ravel_multi_index(tuple(places[chosen].T), self.truths[index].item.labels.shape)
        return ranks[chosen], np.asarray(linear, np.uint64)

    def stream(self, index: int) -> tuple[Integers, Unsigned]:
        """Return random places in the training region of an image, and their ranks.

        The k-th of n voxels has the rank that the k-th lowest of n random ranks has on average,
        so that streamed and ranked voxels can be mixed.
        """
        box = self.splits[index].train
        assert box is not None
        n = min(2 * self.n_wanted + 4096, box.size)
        rng = np.random.default_rng([self.seed, _STREAM, index])
        places = np.stack([rng.integers(a, b, n) for a, b in zip(box.start, box.stop, strict=True)], 1)
        places = places[np.sort(np.unique(places, axis=0, return_index=True)[1])]
        ranks = (np.arange(len(places)) + 0.5) / box.size * 2.0**64
        return places, ranks.astype(np.uint64)

    def _tiles(self, index: int, target: Any, is_valid: Any, box: Box) -> Report:
        """Return the validation tiles that this block shows to hold valid voxels, and foreground."""
        from unetflow.numerics.sampling import rank_of

        region = self.splits[index].validation
        assert region is not None
        inside = region.intersect(box)
        if inside.size == 0:
            return {}
        near: Any = inside.relative_to(box).slices
        valid = is_valid[near]
        front = valid & ((target.any(0) if self.truths[index].is_multilabel else target > 0)[near])
        key, found = _key(self.seed, _TILES, index), {}
        for name, where in (("any", valid), ("front", front)):
            tiles = _tiles_of(where, inside, region, self.tile)
            ranks = rank_of(tiles, key)
            lowest = np.argsort(ranks)[:MOST_TILES]
            found[name] = [pack(ranks[lowest]), pack(tiles[lowest].astype(np.uint64))]
        return found


def _tiles_of(where: Any, inside: Box, region: Box, tile: Shape) -> Integers:
    """Return the numbers of the tiles of ``region`` that hold a voxel that is set."""
    first = [(a - r) // t for a, r, t in zip(inside.start, region.start, tile, strict=True)]
    for axis, (a, b, r, t) in enumerate(zip(inside.start, inside.stop, region.start, tile, strict=True)):
        cuts = [max(r + i * t, a) - a for i in range((a - r) // t, (b - 1 - r) // t + 1)]
        where = np.logical_or.reduceat(where, cuts, axis=axis)
    counts = [-(-n // t) for n, t in zip(region.shape, tile, strict=True)]
    index = [i + f for i, f in zip(np.nonzero(where), first, strict=True)]
    return np.asarray(np.ravel_multi_index(index, counts), np.int64)


def _counts(target: Any, is_valid: Any, is_multilabel: bool) -> dict[str, int]:
    if is_multilabel:
        return {str(k): int((mask.astype(bool) & is_valid).sum()) for k, mask in enumerate(target)}
    counts = np.bincount(target[is_valid])
    return {str(int(value)): int(counts[value]) for value in np.flatnonzero(counts)}


def _mask_of(allowed: Box | None, box: Box) -> npt.NDArray[np.bool_]:
    mask = np.zeros(box.shape, bool)
    if allowed is not None:
        mask[allowed.intersect(box).relative_to(box).slices] = True
    return mask


def _key(seed: int, purpose: int, volume: int) -> int:
    return int(np.random.SeedSequence([seed, purpose, volume]).generate_state(1, np.uint64)[0])
