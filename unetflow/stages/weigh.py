"""Pass 2 of `prepare`: labels with a halo become weight maps, exact at any cut."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.geometry import Block, Shape
from unetflow.stages.inspection import inspect_box
from unetflow.stages.pieces import Pieces
from unetflow.stages.truth import Truth
from unetflow.stages.work import Report

if TYPE_CHECKING:
    from unetflow.settings import Prepare
    from unetflow.stages.inputs import Item
    from unetflow.storage.volume import Volume


@dataclass(frozen=True)
class WeighBlock:
    """Weigh one block: w(x) = w_c(x) + w0 exp(-(d1(x) + d2(x))^2 / (2 sigma^2))."""

    truths: tuple[Truth, ...]
    components: tuple[Volume | None, ...]
    weights: tuple[Volume, ...]
    pieces: Pieces
    class_weights: list[Any]
    w0: float
    sigma: float
    tolerance: float
    border_where: str

    def inspect(self, block: Block) -> Report:
        """Say what the block's labels are."""
        index, here = self.pieces.locate(block.number)
        return inspect_box(self.truths[index].item.labels, here.inner)

    def __call__(self, block: Block) -> Report:
        """Do one block and report."""
        from unetflow.numerics.weights import multilabel_weight_map, weight_map
        from unetflow.runtime.environment import threads_of_a_task

        index, here = self.pieces.locate(block.number)
        truth = self.truths[index]
        if here.inner.intersect(truth.item.region).size == 0:
            # All of it is ignored, whatever the labels say there.
            lead = (len(self.class_weights),) if truth.is_multilabel else ()
            self.weights[index].write(here.inner, np.zeros((*lead, *here.inner.shape), np.float32))
            return {}
        outer = here.outer.intersect(truth.item.labels.box)
        target, is_valid = truth.read(outer)
        make = multilabel_weight_map if truth.is_multilabel else weight_map
        weight = make(
            target,
            truth.read_ids(outer, self.components[index]),
            np.asarray(self.class_weights),
            voxel_size=grid_ratio(truth.item, truth.linked),
            w0=self.w0,
            sigma=self.sigma,
            tolerance=self.tolerance,
            planar=[not linked for linked in truth.linked],
            border_where=self.border_where,  # type: ignore[arg-type]
            ignored=~is_valid,
            threads=threads_of_a_task(),
        )
        inner: Any = (..., *here.inner.relative_to(outer).slices)
        self.weights[index].write(here.inner, weight[inner])
        return {}


def grid_ratio(item: Item, linked: tuple[bool, ...]) -> tuple[float, ...]:
    """Return a voxel size per grid axis; axes that nothing is measured along get 1."""
    dims = sum(linked)
    return (1.0,) * (len(linked) - dims) + item.voxel_ratio(dims)


def border_halo_of(settings: Prepare, items: tuple[Item, ...], linked: tuple[bool, ...]) -> Shape:
    """Return the halo per grid axis that makes block-wise weights those of the whole volume."""
    from unetflow.numerics.weights import border_cut, border_halo

    cut = border_cut(settings.w0, settings.sigma, settings.tolerance)
    planar = [not is_linked for is_linked in linked]
    halos = [border_halo(cut, grid_ratio(item, linked), planar) for item in items]
    # The seam needs one voxel on its own account.
    return tuple(max(*lengths, int(x)) for *lengths, x in zip(*halos, linked, strict=True))
