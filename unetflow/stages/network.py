"""From settings and data to the network's record of numbers and the size of a patch."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.geometry import Shape

if TYPE_CHECKING:
    from unetflow.settings import Settings
    from unetflow.stages.inputs import Item

log = logging.getLogger(__name__)


def model_spec(settings: Settings, in_channels: int, n_classes: int, *, is_multilabel: bool = False) -> UNetSpec:
    """Draw the network's record of numbers from the settings and the data's counts."""
    model = settings.model
    if model.head == "sigmoid" and not is_multilabel and n_classes > 2:
        raise InputError(
            f'model.head = "sigmoid" tells two classes apart, got {n_classes}; use softmax, or kind = "multilabel"'
        )
    is_single = model.head == "sigmoid" and not is_multilabel
    return UNetSpec.build(
        in_channels=in_channels,
        out_channels=1 if is_single else n_classes,
        dims=model.dims,
        depth=model.depth,
        base_channels=model.base_channels,
        padding=model.padding,
        upsample=model.upsample,
        skip=model.skip,
        norm=model.norm,
        dropout=model.dropout,
        head=model.head,
        pool=model.pool,
        kernel=model.kernel,
        extra_conv=2 if model.preset == "keras" else 0,
    )


def choose_patch_shape(settings: Settings, spec: UNetSpec, items: tuple[Item, ...]) -> Shape:
    """Take the wish of the user, rounded up, or choose the largest patch that fits."""
    smallest = tuple(min(lengths) for lengths in zip(*(i.raw.shape[-spec.dims :] for i in items), strict=True))
    wish = settings.prepare.patch_shape
    if wish is not None:
        lengths = wish[-spec.dims :]
        n_spatial = len(items[0].raw.spatial_axes)
        if len(wish) not in (spec.dims, n_spatial) or any(n != 1 for n in wish[: -spec.dims]):
            raise InputError(
                f"prepare.patch_shape needs a length for each of {items[0].raw.spatial_axes}, with 1 along axes "
                f"that the network does not see, got {list(wish)}"
            )
        shape = spec.round_up(lengths)
        if shape != tuple(lengths):
            log.info("patch shape %s rounded up to %s, the next that the network takes", lengths, shape)
        _check_fits(spec, shape, smallest)
        return shape
    return _grow_patch(settings, spec, smallest)


def _grow_patch(settings: Settings, spec: UNetSpec, smallest: Shape) -> Shape:
    """Grow the patch by strides up to the paper's size, the volumes and the memory."""
    most = {2: 388, 3: 68}[spec.dims]
    start = spec.round_up((1,) * spec.dims)
    _check_fits(spec, start, smallest)
    best = start
    batch = settings.train.batch_size
    while True:
        grown = [
            spec.round_up(tuple(n + (a == axis) for a, n in enumerate(best))) for axis in range(spec.dims)
        ]
        outputs = [spec.output_shape(g) for g in grown]
        fits = [
            g
            for axis, (g, out) in enumerate(zip(grown, outputs, strict=True))
            if out[axis] <= min(most, smallest[axis])
            and 3 * batch * spec.activation_bytes(g) <= settings.segment.memory
        ]
        if not fits:
            return best
        best = min(fits, key=lambda g: (max(g), g))


def _check_fits(spec: UNetSpec, shape: Shape, smallest: Shape) -> None:
    output = spec.output_shape(shape)
    if any(out > n for out, n in zip(output, smallest, strict=True)):
        raise InputError(
            f"a patch's output must fit the smallest volume {smallest}, got {output} for an input of {shape}; "
            "use a smaller prepare.patch_shape or a smaller model.depth"
        )
