"""Deep supervision asks coarser levels while the network learns, and leaves no trace in the model."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.unit.nn.patches import squares
from unetflow.architecture import UNetSpec
from unetflow.nn.checkpoint import export_model, load_model
from unetflow.nn.loop import train
from unetflow.nn.recipe import Recipe
from unetflow.nn.supervision import SupervisedUNet, inference_state, shares, training_network
from unetflow.nn.unet import UNet

POOLS = {2: None, 3: [[1, 2, 2], [2, 2, 2], [1, 2, 2]]}


@pytest.mark.parametrize(
    ("dims", "padding", "extra"), list(itertools.product((2, 3), ("valid", "same"), (0, 2)))
)
def test_every_level_answers_for_every_voxel_of_the_output(dims: int, padding: str, extra: int) -> None:
    spec = UNetSpec.build(
        dims=dims, depth=3, base_channels=2, out_channels=3, padding=padding, pool=POOLS[dims], extra_conv=extra
    )  # type: ignore[arg-type]
    shape = spec.round_up((1,) * dims)
    outputs = SupervisedUNet(spec)(torch.zeros(2, 1, *shape))
    assert [tuple(logits.shape) for logits in outputs] == [(2, 3, *spec.output_shape(shape))] * 3


@pytest.mark.parametrize(("dims", "padding"), list(itertools.product((2, 3), ("valid", "same"))))
def test_a_coarse_level_answers_for_the_voxels_that_were_pooled_into_it(dims: int, padding: str) -> None:
    """Kernels of one voxel in a chain of maxima: each level then shows where its voxels lie in the image."""
    spec = UNetSpec.build(
        dims=dims, depth=3, base_channels=1, out_channels=1, padding=padding, pool=POOLS[dims], head="sigmoid",
        dropout=0.0,
    )  # type: ignore[arg-type]
    model = _Pass(spec)
    shape = spec.round_up(tuple(m * 2 + 9 for m in spec.margin))
    image = torch.rand(1, 1, *shape, generator=torch.Generator().manual_seed(0))
    inner = tuple(slice(m, n - m) for m, n in zip(spec.margin, shape, strict=True))
    for level, logits in enumerate(model(image)):
        if level == 0:
            continue
        want = image
        for below in range(level):  # where convolutions cut off, they cut before pooling
            want = _Pass.cut(want, spec, below)
            window = spec.pool[below]
            want = (nn.functional.max_pool2d if dims == 2 else nn.functional.max_pool3d)(want, window)
        for axis, n in enumerate(spec.stride(level), start=2):
            want = want.repeat_interleave(n, axis)
        start = [sum((spec.kernel[b][a] // 2 * 2) * spec.stride(b)[a] for b in range(level)) * (padding == "valid")
                 for a in range(dims)]  # fmt: skip
        expected = want[(0, 0, *(slice(s.start - a, s.stop - a) for s, a in zip(inner, start, strict=True)))]
        assert torch.equal(logits[0, 0], expected), level


class _Pass(SupervisedUNet):
    """Every convolution hands on its centre, and the way up takes the skip instead of what comes from below."""

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__(spec)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d | nn.Conv3d):
                    firsts = [join[0] for join in self.join]  # they read what comes from below, then the skip
                    channel = layer.in_channels // 2 if layer in firsts else 0
                    layer.weight.zero_()
                    layer.weight[(0, channel, *(n // 2 for n in layer.kernel_size))] = 1

    @staticmethod
    def cut(values: torch.Tensor, spec: UNetSpec, level: int) -> torch.Tensor:
        """Take off what two unpadded convolutions take off."""
        if spec.padding == "same":
            return values
        for axis, k in enumerate(spec.kernel[level], start=2):
            values = values.narrow(axis, k - 1, values.shape[axis] - 2 * (k - 1))
        return values


def test_shares_halve_with_each_level_and_add_up_to_one() -> None:
    found = [share for share, _ in shares(tuple(torch.zeros(3, 1)))]
    assert found == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    assert shares(torch.ones(1))[0][0] == 1


def test_training_begins_with_the_weights_of_the_plain_network() -> None:
    spec = UNetSpec.build(depth=3, base_channels=2)
    states = []
    for deep in (False, True):
        torch.manual_seed(3)
        states.append(inference_state(training_network(spec, deep_supervision=deep).state_dict()))
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_coarse_levels_learn_too(tmp_path: Path) -> None:
    spec = UNetSpec.build(depth=3, base_channels=2, padding="same")
    model = SupervisedUNet(spec)
    outputs = model(torch.rand(1, 1, 16, 16))
    outputs[2].sum().backward()
    assert model.coarse_heads[1].weight.grad is not None and model.coarse_heads[1].weight.grad.abs().sum() > 0
    assert model.head.weight.grad is None
    model.eval()
    assert torch.is_tensor(model(torch.rand(1, 1, 16, 16)))


def test_the_model_of_a_supervised_training_is_the_plain_one(tmp_path: Path) -> None:
    spec = UNetSpec.build(depth=2, base_channels=2, padding="same", norm="batch", dropout=0.0)
    patches = squares(8)
    found = []
    for name, deep, ema in (("a", True, 0.0), ("b", False, 0.0), ("c", True, 0.9)):
        recipe = Recipe(steps=4, learning_rate=0.05, batch_size=2, deep_supervision=deep, ema=ema)
        result = train(patches, patches, spec=spec, recipe=recipe, folder=tmp_path / name)
        export_model(tmp_path / f"{name}.safetensors", UNet(spec), {}, result.state)
        model, record = load_model(tmp_path / f"{name}.safetensors")
        assert model.state_dict().keys() == UNet(spec).state_dict().keys()
        assert record["architecture"] == spec.to_dict()
        found.append(result.state["head.weight"])
    assert not torch.equal(found[0], found[1]), "deep supervision changed nothing"


def test_a_supervised_training_goes_on_where_it_stopped(tmp_path: Path) -> None:
    spec = UNetSpec.build(depth=2, base_channels=2, padding="same")
    patches = squares(8)
    recipe = Recipe(steps=6, learning_rate=0.01, batch_size=2, deep_supervision=True, ema=0.9)
    whole = train(patches, None, spec=spec, recipe=recipe, folder=tmp_path / "whole")
    stops = iter([False, False, True])
    train(patches, None, spec=spec, recipe=recipe, folder=tmp_path / "part", should_stop=lambda: next(stops))
    rest = train(patches, None, spec=spec, recipe=recipe, folder=tmp_path / "part")
    assert all(torch.equal(whole.state[name], rest.state[name]) for name in whole.state)
