"""Pass 3 of `prepare`: cut patches, bend them, store them; patch i depends on (seed, i) alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Block, BlockGrid, Box, Shape, mirror_indices
from unetflow.stages.inputs import Item
from unetflow.stages.split import Split
from unetflow.stages.truth import Truth
from unetflow.stages.work import Report

if TYPE_CHECKING:
    from unetflow.numerics.elastic import Field
    from unetflow.storage.patches import PatchStore
    from unetflow.storage.volume import Volume

_SPLITS = {"train": 0, "validation": 1}

Patch = tuple[npt.NDArray[Any], npt.NDArray[np.uint8], npt.NDArray[np.float32]]


def place_tiles(
    tiles: npt.NDArray[np.int64], items: tuple[Item, ...], splits: tuple[Split, ...], tile: Shape
) -> npt.NDArray[np.int64]:
    """Turn volume and tile number into volume and centre voxel, both ``(n, 2)``."""
    rows = []
    for volume, number in tiles.tolist():
        region, shape = splits[volume].validation, items[volume].labels.shape
        assert region is not None
        start = BlockGrid(region, tile)[number].inner.start
        middle = [min(a + t // 2, n - 1) for a, t, n in zip(start, tile, shape, strict=True)]
        rows.append((volume, int(np.ravel_multi_index(middle, shape))))
    return np.asarray(rows, np.int64).reshape(-1, 2)


@dataclass(frozen=True)
class SampleBlock:
    """Make the patches of one shard."""

    truths: tuple[Truth, ...]
    weights: tuple[Volume, ...]
    splits: tuple[Split, ...]
    store: PatchStore
    places: str
    split: str
    margin: Shape
    patch_shape: Shape
    seed: int
    elastic_grid: int
    elastic_sigma: float
    interpolation_order: int
    class_weights: list[Any]

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        numbers = range(block.inner.start[0], block.inner.stop[0])
        places = np.load(self.places, mmap_mode="r")
        patches, n_scaled = [], 0
        for number in numbers:
            volume, place = (int(v) for v in places[number])
            field = self.draw_field(number, self.truths[volume].item)
            n_scaled += field.was_scaled
            patches.append(self.make_patch(volume, place, field))
        image, target, weight = (np.stack(arrays) for arrays in zip(*patches, strict=True))
        self.store.write_shard(block.number, image, target, weight)
        return {"scaled": int(n_scaled)}

    def draw_field(self, number: int, item: Item, *, still: bool = False) -> Field:
        """Draw the displacement of a patch; ``still`` draws none."""
        from unetflow.numerics.elastic import displacement

        reach = 0.0 if still else self.elastic_sigma
        sigma = [reach / ratio for ratio in item.voxel_ratio(len(self.patch_shape))]
        rng = np.random.default_rng([self.seed, 5, _SPLITS[self.split], number])
        return displacement(rng, self.patch_shape, grid=self.elastic_grid, sigma=sigma)

    def make_patch(self, volume: int, place: int, field: Field, start: Shape | None = None) -> Patch:
        """Return image, target and weight of one patch, all moved by one field.

        ``start`` is that of `start_of` if None.
        """
        item = self.truths[volume].item
        start = self.start_of(volume, place, field) if start is None else start
        image = self._image(volume, start, field)
        target, weight = self._truth(volume, start, field)
        if not weight.any():
            # Its only voxels that count were moved out of sight: take it as it lies.
            still = self.draw_field(0, item, still=True)
            image = self._image(volume, start, still)
            target, weight = self._truth(volume, start, still)
        return image, target, weight

    def _start(self, volume: int, place: int) -> Shape:
        """Put the centre in the middle of the output, and the output into its part of the split.

        Where that part is too small, the output stays in the volume.
        """
        item = self.truths[volume].item
        centre = np.unravel_index(place, item.labels.shape)
        allowed = getattr(self.splits[volume], self.split)
        start = []
        for axis, (c, offset, n) in enumerate(zip(centre, item.offset, item.raw.shape, strict=True)):
            length = self._output_length(axis, item)
            low, high = allowed.start[axis] + offset, allowed.stop[axis] + offset
            if high - low < length:
                low, high = 0, n
            start.append(int(min(max(int(c) + offset - length // 2, low), high - length)))
        return tuple(start)

    def _output_length(self, axis: int, item: Item) -> int:
        n_lead = item.raw.ndim - len(self.margin)
        return 1 if axis < n_lead else self.store.target_shape[axis - item.raw.ndim]

    def start_of(self, volume: int, place: int, field: Field) -> Shape:
        """Return the first voxel of the patch's output in the raw volume, per grid axis.

        A training patch moves away from what is held out, if its displaced context would reach
        it, as far as its centre allows. What still reaches over is mirrored there, see `_domain`:
        no training patch ever holds a voxel of the validation region.
        """
        from unetflow.numerics.elastic import source_box

        start = self._start(volume, place)
        item, cut = self.truths[volume].item, self.splits[volume].cut()
        n_lead = item.raw.ndim - len(self.margin)
        if self.split != "train" or cut is None or cut[0] < n_lead:
            return start
        axis, border = cut[0], cut[1] + item.offset[cut[0]]
        needed = source_box(field, order=self._order_of(field)).stop[axis - n_lead]
        over = start[axis] - self.margin[axis - n_lead] + needed - border
        centre = int(np.unravel_index(place, item.labels.shape)[axis]) + item.offset[axis]
        nearest = max(0, centre - self._output_length(axis, item) + 1)
        moved = max(min(start[axis], nearest), start[axis] - max(0, over))
        return (*start[:axis], moved, *start[axis + 1 :])

    def _order_of(self, field: Field) -> int:
        """Return the interpolation: an undisplaced patch is the volume's own voxels, bit for bit."""
        return self.interpolation_order if field.vectors.any() else 0

    def _domain(self, volume: int) -> Box:
        """Return the part of the raw volume that this split may see; readers mirror at its border."""
        item, cut = self.truths[volume].item, self.splits[volume].cut()
        if self.split != "train" or cut is None:
            return item.raw.box
        axis, border = cut
        stop = list(item.raw.shape)
        stop[axis] = border + item.offset[axis]
        return Box((0,) * item.raw.ndim, tuple(stop))

    def _image(self, volume: int, start: Shape, field: Field) -> npt.NDArray[Any]:
        from unetflow.numerics.displace import warp_image
        from unetflow.numerics.elastic import source_box

        item, order = self.truths[volume].item, self._order_of(field)
        needed = source_box(field, order=order)
        origin = tuple(a - m for a, m in zip(start[-len(self.margin) :], self.margin, strict=True))
        lead = start[: -len(self.margin)]
        source = item.raw.read_mirrored(_in_plane(needed.shift(origin), lead), self._domain(volume))
        source = source.reshape(len(source), *needed.shape)
        return warp_image(source, needed, field, order=order, dtype=item.raw.dtype)

    def _truth(self, volume: int, start: Shape, field: Field) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        from unetflow.numerics.displace import warp_truth
        from unetflow.numerics.elastic import source_box

        dims = len(self.margin)
        shape = self.store.target_shape[-dims:]
        output = Box(self.margin, tuple(m + n for m, n in zip(self.margin, shape, strict=True)))
        needed = source_box(field, output, order=1)
        origin = tuple(a - m for a, m in zip(start[-dims:], self.margin, strict=True))
        box = _in_plane(needed.shift(origin), start[:-dims])
        target, weight = self._read_truth(volume, box)
        squeeze = (*target.shape[: target.ndim - box.ndim], *needed.shape)
        return warp_truth(
            target.reshape(squeeze), weight.reshape(squeeze), needed, field, output, class_weights=self.class_weights
        )

    def _read_truth(self, volume: int, box: Box) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Read target and weight of any box of the raw volume: mirrored outside it, 0 without labels."""
        truth = self.truths[volume]
        item = truth.item
        index = [
            mirror_indices(a, b, n) - offset
            for a, b, n, offset in zip(box.start, box.stop, self._domain(volume).shape, item.offset, strict=True)
        ]
        has_label = [(i >= 0) & (i < n) for i, n in zip(index, item.labels.shape, strict=True)]
        lead = (truth.n_classes,) if truth.is_multilabel else ()
        target = np.zeros((*lead, *box.shape), np.uint8)
        weight = np.zeros((*lead, *box.shape), np.float32)
        if not all(known.any() for known in has_label):
            return target, weight
        known_index = [i[k] for i, k in zip(index, has_label, strict=True)]
        needed = Box(tuple(int(i.min()) for i in known_index), tuple(int(i.max()) + 1 for i in known_index))
        take: Any = np.ix_(*[i - a for i, a in zip(known_index, needed.start, strict=True)])
        put: Any = np.ix_(*has_label)
        found, _ = truth.read(needed)
        stored = self.weights[volume].read(needed)
        stored = stored if truth.is_multilabel else stored[0]
        target[(..., *put)] = found[(..., *take)]
        weight[(..., *put)] = stored[(..., *take)]
        return target, weight


def _in_plane(box: Box, lead: Shape) -> Box:
    """Add the axes that the network does not see: one plane of each."""
    return Box((*lead, *box.start), (*(a + 1 for a in lead), *box.stop))
