"""What `prepare` will do, worked out from settings and shapes before anything runs."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Shape
from unetflow.memory import format_bytes
from unetflow.stages.inputs import Item, open_items
from unetflow.stages.layout import choose_layout, linked_axes, on_grid
from unetflow.stages.network import choose_patch_shape, model_spec
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.sparse import Presence, annotated_region, find_presence
from unetflow.stages.split import Split, plan_split
from unetflow.stages.weigh import border_halo_of

if TYPE_CHECKING:
    from unetflow.settings import Settings


@dataclass(frozen=True)
class Plan:
    """What `prepare` will do, worked out from settings and shapes."""

    settings: Settings
    items: tuple[Item, ...]
    spec: UNetSpec
    linked: tuple[bool, ...]
    patch_shape: Shape
    output_shape: Shape
    splits: tuple[Split, ...]
    layouts: tuple[tuple[Shape, Shape], ...]
    halo: Shape

    @property
    def dataset(self) -> Path:
        """Where the result goes."""
        return self.settings.run_folder / "dataset.zarr"

    @property
    def validation_tile(self) -> Shape:
        """Shape of a validation patch's output in label voxels, per grid axis."""
        return (1,) * (self.items[0].labels.ndim - self.spec.dims) + self.output_shape

    @property
    def kind(self) -> str:
        """Kind of the labels, the same in every table."""
        return self.items[0].data.kind

    @property
    def scratch(self) -> Path:
        """Where the record and temporary files of the run lie."""
        return self.settings.run_folder / ".unetflow"

    def places_file(self, split: str) -> Path:
        """Volume and centre of every patch of a split."""
        return self.scratch / f"places-{split}.npy"

    def grids(self, halo: Shape = ()) -> Pieces:
        """Return the blocks of all label volumes."""
        return Pieces(
            tuple(
                BlockGrid(item.labels.box, shard, halo, halo)
                for item, (_, shard) in zip(self.items, self.layouts, strict=True)
            )
        )

    @cached_property
    def presence(self) -> Presence:
        """Which blocks of the labels hold anything; asks the stores when it is first wanted."""
        return find_presence(self.items, self.grids(), self.grids(self.halo))

    def summary(self) -> dict[str, Any]:
        """Return what ``--plan`` prints."""
        from unetflow.stages.measure import plan_sample

        settings, presence = self.settings.prepare, self.presence
        raw = self.items[0].raw
        voxel = np.dtype(raw.dtype).itemsize * raw.n_channels
        patch = self._patch_bytes
        measured = [b for item in self.items for b in plan_sample(item.raw, self.settings.run.seed)]
        # Components of classes: label, pair (blocks with open fragments: here all), count, number, relabel.
        n_passes, n_reads = (5, 3) if self.kind != "instances" else (0, 0)
        read = sum(b.inner.size for b in measured) * voxel
        read += self._label_bytes(presence.counted) + self._label_bytes(presence.weighed)
        read += self._label_bytes(presence.labelled) * n_reads + settings.patches * patch
        n_blocks = len(measured) + len(presence.counted) + len(presence.weighed) + n_passes * len(presence.labelled)
        n_blocks += -(-settings.patches // self._rows_a_shard)
        write = sum(block.inner.size for block in presence.weighed) * 4 + settings.patches * patch
        return {
            "images": len(self.items),
            "patch_shape": list(self.patch_shape),
            "output_shape": list(self.output_shape),
            "patches": settings.patches,
            "blocks": n_blocks,
            "blocks_without_labels": len(presence.counted.pieces) - len(presence.counted),
            "halo": list(self.halo),
            "read": format_bytes(read),
            "write": format_bytes(write),
            "memory_per_worker": format_bytes(self.memory),
            "dataset": str(self.dataset),
        }

    def _label_bytes(self, blocks: Some) -> int:
        """Return the bytes of labels that a pass reads, uncompressed."""
        total = 0
        for block in blocks:
            index, _ = blocks.pieces.locate(block.number)
            labels = self.items[index].labels
            total += block.outer.intersect(labels.box).size * np.dtype(labels.dtype).itemsize * labels.n_channels
        return total

    @property
    def memory(self) -> int:
        """Bytes that the largest block of any pass takes, beside what Python and its libraries do."""
        needs = [0]
        for item, (_, shard) in zip(self.items, self.layouts, strict=True):
            label = np.dtype(item.labels.dtype).itemsize * item.labels.n_channels
            outer = math.prod(min(s + 2 * h, n) for s, h, n in zip(shard, self.halo, item.labels.shape, strict=True))
            # Ids as read and as int32, two distances and two objects, target, masks and the result.
            needs.append(outer * (2 * label + 24 + 4 * item.labels.n_channels))
        # A shard of patches as a list and as one array, and what one patch is made from.
        needs.append(2 * self._rows_a_shard * self._patch_bytes + 40 * math.prod(self.patch_shape))
        return max(needs)

    @property
    def _patch_bytes(self) -> int:
        raw = self.items[0].raw
        voxel = np.dtype(raw.dtype).itemsize * raw.n_channels
        return math.prod(self.patch_shape) * voxel + math.prod(self.output_shape) * 3

    @property
    def _rows_a_shard(self) -> int:
        from unetflow.storage.patches import rows_a_shard

        return rows_a_shard(self._patch_bytes, self.settings.prepare.patches)


def plan(settings: Settings) -> Plan:
    """Work out blocks, patches and the split; every refusal happens here.

    Raises
    ------
    InputError
        Rule, value and cure of what cannot be done.
    """
    items = open_items(settings)
    axes = items[0].raw.grid_axes
    linked = linked_axes(axes, settings.model.dims)
    spec = model_spec(settings, items[0].raw.n_channels, 2)
    if items[0].data.kind == "multilabel" and settings.model.head != "sigmoid":
        raise InputError('kind = "multilabel" needs model.head = "sigmoid", got softmax; its classes may overlap')
    patch_shape = choose_patch_shape(settings, spec, items)
    output_shape = spec.output_shape(patch_shape)
    chunk = on_grid(settings.prepare.chunk, axes, "prepare.chunk")
    shard = on_grid(settings.prepare.shard, axes, "prepare.shard")
    layouts = tuple(choose_layout(item.labels.shape, spec.dims, chunk, shard) for item in items)
    # In a volume that is annotated in one place, both parts of the split have to lie there.
    annotated = tuple(replace(item, region=annotated_region(item)) for item in items)
    splits = plan_split(
        annotated, spec.dims, output_shape, spec.margin, settings.prepare.validation_fraction, settings.run.seed
    )
    halo = border_halo_of(settings.prepare, items, linked)
    return Plan(settings, items, spec, linked, patch_shape, output_shape, splits, layouts, halo)


def fingerprint(plan: Plan) -> dict[str, Any]:
    """Return what the bytes of the dataset depend on."""
    settings = plan.settings
    keys = {"data", "prepare", "model"}
    return {
        "settings": settings.model_dump(mode="json", include=keys, exclude={"prepare": {"missing"}}),
        "seed": settings.run.seed,
        "inputs": {
            item.title: [v.digest() for v in (item.raw, item.labels, item.mask) if v is not None]
            for item in plan.items
        },
    }
