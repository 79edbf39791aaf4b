"""The network is the one that its numbers draw."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.nn.unet import ChannelNorm, UNet

CONVOLUTIONS = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def on_meta(spec: UNetSpec) -> UNet:
    with torch.device("meta"):
        return UNet(spec)


def test_the_network_of_the_paper_has_31_030_658_parameters() -> None:
    assert count(on_meta(UNetSpec.build())) == 31_030_658


def test_the_keras_network_has_31_031_685_parameters() -> None:
    spec = UNetSpec.build(padding="same", upsample="resize", head="sigmoid", out_channels=1, extra_conv=2)
    assert count(on_meta(spec)) == 31_031_685


def test_an_unpadded_input_of_572_gives_an_output_of_388() -> None:
    model = on_meta(UNetSpec.build())
    assert model(torch.zeros(1, 1, 572, 572, device="meta")).shape == (1, 2, 388, 388)


@pytest.mark.parametrize("upsample", ["transpose", "resize"])
def test_weights_deviate_by_the_root_of_two_over_the_incoming_connections(upsample: str) -> None:
    torch.manual_seed(0)
    model = UNet(UNetSpec.build(depth=2, base_channels=48, upsample=upsample))  # type: ignore[arg-type]
    layers = [layer for layer in model.modules() if isinstance(layer, CONVOLUTIONS)]
    assert len(layers) == 13
    for layer in layers:
        is_transposed = isinstance(layer, nn.ConvTranspose2d)
        incoming = layer.in_channels * (1 if is_transposed else math.prod(layer.kernel_size))
        n = layer.weight.numel()
        # Four standard errors of a deviation, and of a mean, taken over n draws.
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / incoming), rel=4 / math.sqrt(2 * n))
        assert abs(layer.weight.mean().item()) < 4 * math.sqrt(2 / incoming / n)
        assert layer.bias is not None and not layer.bias.any()


OPTIONS = list(
    itertools.product(
        (2, 3),
        ("valid", "same"),
        ("transpose", "resize"),
        ("concat", "sum"),
        ("none", "batch", "layer"),
        (0, 2),
    )
)


@pytest.mark.parametrize(("dims", "padding", "upsample", "skip", "norm", "extra"), OPTIONS)
def test_every_option_builds_learns_and_has_the_shape_that_was_worked_out(
    dims: int, padding: str, upsample: str, skip: str, norm: str, extra: int
) -> None:
    spec = UNetSpec.build(
        in_channels=2,
        out_channels=3,
        dims=dims,
        depth=2,
        base_channels=2,
        padding=padding,  # type: ignore[arg-type]
        upsample=upsample,  # type: ignore[arg-type]
        skip=skip,  # type: ignore[arg-type]
        norm=norm,  # type: ignore[arg-type]
        extra_conv=extra,
        pool=[(1, 2), (3, 2)] if dims == 2 else [(1, 2, 2), (2, 1, 2)],
        kernel=[(1, 3), (3, 3), (3, 5)] if dims == 2 else [(1, 3, 3), (3, 3, 3), (3, 3, 1)],
    )
    shape = spec.round_up((9,) * dims)
    logits = UNet(spec)(torch.randn(2, 2, *shape))
    assert logits.shape == (2, 3, *spec.output_shape(shape))
    # Not the plain sum, whose gradient a norm could cancel.
    logits.square().mean().backward()


def test_every_parameter_learns() -> None:
    torch.manual_seed(1)
    for norm in ("none", "batch", "layer"):
        model = UNet(UNetSpec.build(depth=2, base_channels=8, norm=norm, dropout=0.0))  # type: ignore[arg-type]
        model(torch.randn(2, 1, 60, 60)).square().mean().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters() if p.ndim > 1)


def test_a_shape_that_does_not_fit_the_poolings_is_refused_with_the_next_good_one() -> None:
    with pytest.raises(InputError, match=r"use \(16, 16\)"):
        UNet(UNetSpec.build(depth=2, base_channels=2, padding="same"))(torch.zeros(1, 1, 13, 15))


@pytest.mark.parametrize("dims", [2, 3])
def test_layer_norm_is_over_the_channels_of_each_voxel(dims: int) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 7, *range(3, 3 + dims)) * 5 + 2
    normal = ChannelNorm(7)(features)
    mean, deviation = features.mean(1, keepdim=True), features.std(1, keepdim=True, correction=0)
    assert torch.allclose(normal, (features - mean) / deviation, atol=1e-4)
    one = torch.zeros(dims, dtype=torch.int).tolist()
    alone = ChannelNorm(7)(features[(slice(None), slice(None), *(slice(i, i + 1) for i in one))])
    assert torch.allclose(alone.flatten(1), normal[(slice(None), slice(None), *one)], atol=1e-6)


def test_dropout_acts_at_the_end_of_the_contracting_path_and_only_in_training() -> None:
    torch.manual_seed(0)
    model = UNet(UNetSpec.build(depth=2, base_channels=4, dropout=0.5))
    seen: list[torch.Size] = []
    model.dropout.register_forward_hook(lambda layer, inputs, output: seen.append(output.shape))
    image = torch.randn(1, 1, 44, 44)
    assert not torch.equal(model(image), model(image))
    assert seen[:2] == [(1, 8, 16, 16), (1, 16, 4, 4)]
    model.eval()
    assert torch.equal(model(image), model(image))


def test_resize_repeats_each_voxel_then_looks_towards_the_far_end() -> None:
    spec = UNetSpec.build(depth=1, base_channels=1, upsample="resize", pool=[(2, 3)])
    up = UNet(spec).up[0][0]
    image = torch.arange(8.0).reshape(1, 2, 2, 2)
    with torch.no_grad():
        up.convolution.weight.zero_()
        up.convolution.weight[0, 0, 1, 2] = 1
        result = up(image)[0, 0]
    wide = image[0, 0].repeat_interleave(2, 0).repeat_interleave(3, 1)
    expected = torch.zeros(4, 6)
    expected[:-1, :-2] = wide[1:, 2:]
    assert torch.equal(result, expected)


def test_features_lie_channels_last_in_memory() -> None:
    for dims, layout in ((2, torch.channels_last), (3, torch.channels_last_3d)):
        model = UNet(UNetSpec.build(dims=dims, depth=1, base_channels=4, norm="layer"))
        assert model.contract[1][0].weight.is_contiguous(memory_format=layout)
        image = torch.randn(1, 1, *(20,) * dims).contiguous(memory_format=layout)
        assert model.contract[0](image).is_contiguous(memory_format=layout)
