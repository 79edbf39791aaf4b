"""What `prepare` will do, worked out from settings and shapes before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
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
from unetflow.stages.pieces import Pieces
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

    def summary(self) -> dict[str, Any]:
        """Return what ``--plan`` prints."""
        settings = self.settings.prepare
        voxels = int(np.prod(self.patch_shape)) * settings.patches
        size = np.dtype(self.items[0].raw.dtype).itemsize * self.items[0].raw.n_channels
        return {
            "images": len(self.items),
            "patch_shape": list(self.patch_shape),
            "output_shape": list(self.output_shape),
            "patches": settings.patches,
            "blocks": len(self.grids()),
            "halo": list(self.halo),
            "read": format_bytes(sum(i.labels.nbytes + i.raw.nbytes for i in self.items)),
            "write": format_bytes(voxels * size + sum(4 * i.labels.box.size for i in self.items)),
            "dataset": str(self.dataset),
        }


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
    splits = plan_split(
        items, spec.dims, output_shape, spec.margin, settings.prepare.validation_fraction, settings.run.seed
    )
    halo = border_halo_of(settings.prepare, items, linked)
    return Plan(settings, items, spec, linked, patch_shape, output_shape, splits, layouts, halo)


def fingerprint(plan: Plan) -> dict[str, Any]:
    """Return what the bytes of the dataset depend on."""
    settings = plan.settings
    keys = {"data", "prepare", "model"}
    return {
        "settings": settings.model_dump(mode="json", include=keys),
        "seed": settings.run.seed,
        "inputs": {
            item.title: [v.digest() for v in (item.raw, item.labels, item.mask) if v is not None]
            for item in plan.items
        },
    }
