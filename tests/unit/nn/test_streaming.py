"""Rows that flow through a network give what a forward pass over the whole image gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.nn.streaming import RowStream
from unetflow.nn.unet import UNet
from unetflow.row_stream import rows_held, skip_offsets, slab_rows


@st.composite
def networks(draw: st.DrawFn) -> UNetSpec:
    dims = draw(st.sampled_from([2, 3]))
    depth = draw(st.integers(1, 3 if dims == 2 else 2))
    windows = st.sampled_from([1, 2, 3]) if dims == 2 else st.sampled_from([1, 2])
    pool = [[draw(windows), 2, 2][-dims:] if dims == 3 else [draw(windows), 2] for _ in range(depth)]
    return UNetSpec.build(
        dims=dims,
        depth=depth,
        base_channels=draw(st.sampled_from([2, 4])),
        in_channels=draw(st.integers(1, 2)),
        out_channels=draw(st.integers(1, 3)),
        padding=draw(st.sampled_from(["valid", "same"])),
        upsample=draw(st.sampled_from(["transpose", "resize"])),
        skip=draw(st.sampled_from(["concat", "sum"])),
        norm=draw(st.sampled_from(["none", "layer", "batch"])),
        extra_conv=draw(st.sampled_from([0, 2])),
        kernel=draw(st.sampled_from([3, 3, 5])),
        pool=pool,
        head="sigmoid",
    )


def network(spec: UNetSpec, seed: int) -> UNet:
    torch.manual_seed(seed)
    model = UNet(spec).eval().requires_grad_(False)
    for name, value in model.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            value.uniform_(0.5, 1.5)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.normal_()  # else zeros, and rows of padding would look like rows of nothing
    return model


@settings(max_examples=25)
@given(networks(), st.data())
def test_rows_give_the_logits_of_the_whole_image_for_any_network_shape_and_slab(spec: UNetSpec, data: Any) -> None:
    # In double precision: a norm over two channels makes much of a rounding error.
    model = network(spec, data.draw(st.integers(0, 99))).double()
    stream = RowStream(model, data.draw(st.sampled_from([1, 3000, 20_000, 10**9])))
    for _ in range(2):  # the second one finds the buffers of the first
        wish = (data.draw(st.integers(1, 60)), *(data.draw(st.integers(1, 20)) for _ in spec.pool[0][1:]))
        shape = spec.tile_input([-(-n // s) * s for n, s in zip(wish, spec.total_stride, strict=True)])
        image = torch.randn(data.draw(st.integers(1, 2)), spec.in_channels, *shape, dtype=torch.float64)
        with torch.inference_mode():
            expected = model(image)
            found = torch.cat(list(stream(image)), 2)
        assert found.shape == expected.shape
        assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("dims", [2, 3])
def test_rows_give_the_same_in_single_precision(dims: int, padding: str) -> None:
    spec = UNetSpec.build(dims=dims, depth=2, base_channels=8, padding=padding)
    model = network(spec, 0)
    image = torch.randn(1, 1, *spec.tile_input((64, *(32,) * (dims - 1))))
    with torch.inference_mode():
        expected = model(image)
        found = torch.cat(list(RowStream(model, 100_000)(image)), 2)
    assert float((found - expected).abs().max()) < 3e-6 * float(expected.abs().max())


@pytest.mark.parametrize("norm", ["none", "layer"])
def test_rows_are_computed_in_half_precision_where_that_is_asked(norm: Any) -> None:
    spec = UNetSpec.build(depth=2, base_channels=8, norm=norm)
    model = network(spec, 0)
    image = torch.randn(1, 1, *spec.tile_input((64, 32)))
    with torch.inference_mode():
        full = model(image)
        with torch.autocast("cpu", torch.bfloat16):
            expected = model(image).float()
            found = torch.cat(list(RowStream(model, 100_000)(image)), 2).float()
    assert float((expected - full).abs().max()) > 1e-3, "nothing was computed in half precision"
    assert float((found - expected).abs().max()) < 0.1 * float((expected - full).abs().max())


def test_a_pass_that_was_given_up_leaves_no_rows_behind() -> None:
    model = network(UNetSpec.build(depth=2, base_channels=4, padding="same"), 0)
    stream = RowStream(model, 1)
    images = [torch.randn(1, 1, 40, 40) for _ in range(2)]
    with torch.inference_mode():
        next(stream(images[0]))
        found = torch.cat(list(stream(images[1])), 2)
        assert torch.allclose(found, model(images[1]), atol=1e-5)


def test_a_shape_that_the_network_does_not_take_is_refused() -> None:
    stream = RowStream(network(UNetSpec.build(depth=2, base_channels=4), 0), 1000)
    with pytest.raises(InputError):
        next(stream(torch.zeros(1, 1, 45, 44)))


@settings(max_examples=25)
@given(networks(), st.integers(0, 12), st.sampled_from([1, 3000, 20_000]))
def test_a_longer_image_needs_no_more_room(spec: UNetSpec, n_more: int, slab_bytes: int) -> None:
    rest = [16] * (spec.dims - 1)
    shape = spec.tile_input([-(-n // s) * s for n, s in zip((4000, *rest), spec.total_stride, strict=True)])
    slabs = slab_rows(spec, shape, slab_bytes)
    long, longer = (rows_held(spec, shape[0] + n * spec.total_stride[0], slabs) for n in (n_more, 10**6))
    assert long == longer


def test_skips_are_joined_where_the_whole_image_crops_them() -> None:
    spec = UNetSpec.build(depth=4)
    assert skip_offsets(spec, 572) == (88, 40, 16, 4)  # figure 1 of the paper: 568 to 392, 280 to 200, ...
    assert skip_offsets(UNetSpec.build(depth=4, padding="same"), 512) == (0, 0, 0, 0)
