"""The two passes of `verify`: read every chunk; compute some blocks again and compare."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from unetflow.errors import InputError
from unetflow.geometry import Block, BlockGrid, Box
from unetflow.stages.outputs import Levels, Output
from unetflow.stages.pieces import Pieces
from unetflow.stages.predict import PredictBlock, quantise
from unetflow.stages.pyramid import pool, slabs
from unetflow.stages.verify_rules import Array, Flags, ObjectRule, wrong_classes, wrong_probabilities
from unetflow.stages.work import Report

if TYPE_CHECKING:
    from unetflow.storage.volume import Volume


@dataclass(frozen=True)
class ReadBlock:
    """Read the chunks of one file: decoding checks zstd's checksum and the crc32c of shards.

    Parameters
    ----------
    names : tuple of str
        Of the arrays, below the output.
    """

    names: tuple[str, ...]
    volumes: tuple[Volume, ...]
    pieces: Pieces

    def __call__(self, block: Block) -> Report:
        from unetflow.storage.volume import CorruptChunkError

        index, here = self.pieces.locate(block.number)
        volume = self.volumes[index]
        for slab in slabs(here.inner, volume.chunk):
            try:
                volume.read(slab)
            except CorruptChunkError as damage:
                box = _first_damaged(volume, slab)
                return {
                    "array": self.names[index],
                    "box": str(box),
                    "file": f"{volume.path}/{damage.key}" if damage.key else volume.file_at(box.start),
                    "cause": str(damage.cause),
                }
        return {}


def _first_damaged(volume: Volume, box: Box) -> Box:
    """Return the first chunk of a box that cannot be read by itself."""
    from unetflow.storage.volume import CorruptChunkError

    for chunk in BlockGrid(volume.box, volume.chunk).touching(box):
        try:
            volume.read(chunk.inner)
        except CorruptChunkError:
            return chunk.inner
    return box


@dataclass(frozen=True)
class CheckBlock:
    """Predict one block again and compare what is stored of it, its objects and its pyramids.

    Parameters
    ----------
    predict : PredictBlock
        The task that made it; what it would write is compared instead.
    stored : tuple of Output
        Of each image.
    root : str
        The output; arrays are named by their place below it.
    rule : ObjectRule
    precisions : dict of int to str
        In which each block was made, where the record tells.
    """

    predict: PredictBlock
    stored: tuple[Output, ...]
    root: str
    rule: ObjectRule
    precisions: dict[int, str]

    def __call__(self, block: Block) -> Report:
        index, here = self.predict.pieces.locate(block.number)
        found = list(self._differences(block, index, here.inner))
        return {"box": str(here.inner), "differences": found}

    def _differences(self, block: Block, index: int, box: Box) -> Iterator[Report]:
        output = self.stored[index]
        predicted = self.predict.compute(block, self.predict.load(block))
        p, is_bf16 = predicted.probabilities, predicted.precision == "bf16"
        assert p is not None
        made = self.precisions.get(block.number, predicted.precision)
        if made != predicted.precision:
            where = "a GPU" if made == "bf16" else "a processor"
            raise InputError(
                f"block {block.number} was computed in {made} on {where}, and only there its numbers come again, got "
                f"{predicted.precision} here; verify on {where} (--cluster), or check checksums only: --blocks 0"
            )
        if output.probabilities:
            stored = output.probabilities[0].read(box)
            wrong = wrong_probabilities(stored, p, is_bf16=is_bf16)
            yield from self._told(output.probabilities[0], box, wrong, stored, quantise(p, stored.dtype.name))
        head, is_many = self.predict.tilings[index].spec.head, len(output.classes) > 1
        for channel, (levels, expected) in enumerate(zip(output.classes, predicted.classes, strict=True)):
            stored = levels[0].read(box)
            wrong = wrong_classes(
                stored[0], expected, p, threshold=self.predict.threshold, head=head,
                channel=channel if is_many else None, is_bf16=is_bf16,
            )  # fmt: skip
            yield from self._told(levels[0], box, wrong[None], stored, expected[None])
        if output.instances:
            instances, classes = (levels[0].read(box) for levels in (output.instances, output.classes[0]))
            wrong = self.rule.wrong(instances[0], classes[0])
            yield from self._told(output.instances[0], box, wrong[None], instances, classes, is_rule=True)
        yield from self._pyramid(output.probabilities, box, is_labels=False)
        for levels in (*output.classes, output.instances):
            yield from self._pyramid(levels, box, is_labels=True)

    def _pyramid(self, levels: Levels, box: Box, *, is_labels: bool) -> Iterator[Report]:
        """Pool each level from the stored one above it, where it covers the block."""
        from unetflow.storage.ngff import level_shapes

        if not levels:
            return
        top = levels[0]
        plan = level_shapes(top.shape, top.voxel_size, top.spatial_axes)
        for finer, coarser, level in zip(levels[:-1], levels[1:], plan[1:], strict=False):
            ends = zip(box.stop, level.factors, strict=True)
            start = tuple(a // f for a, f in zip(box.start, level.factors, strict=True))
            box = Box(start, tuple(-(-b // f) for b, f in ends))
            stored, expected = coarser.read(box), pool(finer, box, level.factors, is_labels=is_labels)
            yield from self._told(coarser, box, stored != expected, stored, expected)

    def _told(
        self, volume: Volume, box: Box, wrong: Flags, stored: Array, expected: Array, *,
        is_rule: bool = False,
    ) -> Iterator[Report]:  # fmt: skip
        """Put wrong voxels ``(C, ...)`` of an array into words; nothing where there are none."""
        if not wrong.any():
            return
        channel, *at = (int(i) for i in np.unravel_index(int(wrong.argmax()), wrong.shape))
        place = [a + i for a, i in zip(box.start, at, strict=True)]
        here = (channel, *at)
        told = "class" if is_rule else "computed"
        yield {
            "array": volume.path.removeprefix(self.root).strip("/"),
            "file": volume.file_at(place, channel),
            "voxels": int(wrong.sum()),
            "first": place,
            "stored": stored[here].item(),
            told: expected[here].item(),
        }


def unrounded(outputs: Sequence[Output]) -> tuple[Output, ...]:
    """Return outputs whose probabilities a task computes as float32, wanted or not; nothing is written there."""
    return tuple(
        replace(o, probabilities=(replace((o.probabilities or o.classes[0])[0], dtype="float32"),)) for o in outputs
    )
