"""The U-Net's size arithmetic, held against a network of intervals that is walked step by step."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError


@st.composite
def specs(draw: st.DrawFn, /, **fixed: Any) -> UNetSpec:
    """Draw a small network; odd kernels and pooling windows differ by level and axis."""
    dims = draw(st.sampled_from([2, 3]))
    depth = draw(st.integers(1, 3))
    window = st.tuples(*[st.integers(1, 3)] * dims)
    kernel = st.tuples(*[st.sampled_from([1, 3, 5])] * dims)
    numbers: dict[str, Any] = {
        "dims": dims,
        "depth": depth,
        "padding": draw(st.sampled_from(["valid", "same"])),
        "upsample": draw(st.sampled_from(["transpose", "resize"])),
        "skip": draw(st.sampled_from(["concat", "sum"])),
        "pool": [draw(window) for _ in range(depth)],
        "kernel": [draw(kernel) for _ in range(depth + 1)],
        "extra_conv": draw(st.sampled_from([0, 2])),
    }
    return UNetSpec.build(**(numbers | fixed))


class Walk:
    """One axis of the network on intervals: what each position saw of the input.

    ``low`` and ``high`` (N,) are the first and last input voxel that a position depends on;
    ``spoilt`` (N,) says whether it saw padding. It knows nothing of the formulas under test.
    """

    def __init__(self, spec: UNetSpec, axis: int) -> None:
        self.same = spec.padding == "same"
        self.resize = spec.upsample == "resize"
        self.extra = bool(spec.extra_conv)
        self.kernel = [k[axis] for k in spec.kernel]
        self.pool = [w[axis] for w in spec.pool]

    def output(self, length: int) -> npt.NDArray[np.int64]:
        """Return rows low, high, spoilt (3, N) of the output for an input of ``length``."""
        here = np.array([np.arange(length), np.arange(length), np.zeros(length)], int)
        skips = []
        for window, kernel in zip(self.pool, self.kernel[:-1], strict=True):
            here = self.convolve(self.convolve(here, kernel), kernel)
            skips.append(here)
            assert here.shape[1] % window == 0
            here = self.gather(here, window, step=window)
        here = self.convolve(self.convolve(here, self.kernel[-1]), self.kernel[-1])
        for window, kernel in reversed(list(zip(self.pool, self.kernel[:-1], strict=True))):
            here = np.repeat(here, window, axis=1)
            if self.resize:
                here = self.gather(self.pad(here, 0, window - 1), window)
            skip = skips.pop()
            extra = skip.shape[1] - here.shape[1]
            assert extra % 2 == 0
            here = self.join(here, skip[:, extra // 2 : skip.shape[1] - extra // 2])
            here = self.convolve(self.convolve(here, kernel), kernel)
        return self.convolve(here, self.kernel[0]) if self.extra else here

    def convolve(self, here: npt.NDArray[np.int64], kernel: int) -> npt.NDArray[np.int64]:
        radius = kernel // 2 if self.same else 0
        return self.gather(self.pad(here, radius, radius), kernel)

    @staticmethod
    def pad(here: npt.NDArray[np.int64], before: int, after: int) -> npt.NDArray[np.int64]:
        padded = np.pad(here, ((0, 0), (before, after)), mode="edge")
        padded[2, :before] = 1
        padded[2, padded.shape[1] - after :] = 1
        return padded

    @staticmethod
    def gather(here: npt.NDArray[np.int64], width: int, step: int = 1) -> npt.NDArray[np.int64]:
        seen = np.lib.stride_tricks.sliding_window_view(here, width, axis=1)[:, ::step]
        return np.array([seen[0].min(1), seen[1].max(1), seen[2].max(1)])

    @staticmethod
    def join(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        return np.array([np.minimum(a[0], b[0]), np.maximum(a[1], b[1]), np.maximum(a[2], b[2])])


# The paper's numbers


def test_the_paper_takes_572_and_gives_388() -> None:
    paper = UNetSpec.build(dims=2)
    assert paper.output_shape((572, 572)) == (388, 388)
    assert paper.total_stride == (16, 16)
    assert [paper.channels(level) for level in range(5)] == [64, 128, 256, 512, 1024]


def test_the_original_3d_network_takes_132_132_116_and_gives_44_44_28() -> None:
    # Cicek et al. 2016, figure 2: depth 3, the same convolutions.
    assert UNetSpec.build(dims=3, depth=3).output_shape((132, 132, 116)) == (44, 44, 28)


def test_the_padded_network_takes_multiples_of_16_and_keeps_them() -> None:
    padded = UNetSpec.build(padding="same", upsample="resize", head="sigmoid", out_channels=1, extra_conv=2)
    assert padded.output_shape((256, 512)) == (256, 512)
    assert padded.round_up((250, 500)) == (256, 512)


# Sizes


@given(specs(), st.integers(1, 150))
def test_the_output_has_the_length_that_walking_the_network_gives(spec: UNetSpec, length: int) -> None:
    shape = spec.round_up((length,) * spec.dims)
    walked = tuple(Walk(spec, axis).output(n).shape[1] for axis, n in enumerate(shape))
    assert spec.output_shape(shape) == walked


@given(specs(), st.integers(1, 150))
def test_round_up_gives_the_smallest_shape_that_is_taken(spec: UNetSpec, length: int) -> None:
    rounded = spec.round_up((length,) * spec.dims)
    assert spec.accepts(rounded)
    for axis in range(spec.dims):
        for n in range(length, rounded[axis]):
            assert not spec.accepts([n if a == axis else r for a, r in enumerate(rounded)])


@given(specs(), st.integers(1, 100))
def test_taken_lengths_repeat_with_the_total_stride(spec: UNetSpec, length: int) -> None:
    shape = spec.round_up((length,) * spec.dims)
    longer = tuple(n + s for n, s in zip(shape, spec.total_stride, strict=True))
    assert spec.round_up([n + 1 for n in shape]) == longer


@given(specs(), st.integers(1, 100))
def test_the_output_is_the_input_less_the_margin_at_both_ends(spec: UNetSpec, length: int) -> None:
    shape = spec.round_up((length,) * spec.dims)
    expected = tuple(n - 2 * m for n, m in zip(shape, spec.margin, strict=True))
    assert spec.output_shape(shape) == expected


@given(specs())
def test_the_stride_of_a_level_is_the_product_of_the_poolings_above_it(spec: UNetSpec) -> None:
    assert spec.stride(0) == (1,) * spec.dims
    for level, window in enumerate(spec.pool):
        expected = tuple(s * w for s, w in zip(spec.stride(level), window, strict=True))
        assert spec.stride(level + 1) == expected
    assert spec.stride(spec.depth) == spec.total_stride


# The halo


def spoilt_kept_voxels(spec: UNetSpec, axis: int, before: int, length: int, kept: int) -> int:
    """Count kept voxels that saw padding, for a tile of ``length`` that starts ``before`` the kept ones."""
    _, _, spoilt = Walk(spec, axis).output(length)
    first = before - spec.margin[axis]
    return int(spoilt[first : first + kept].sum())


@given(specs(), st.integers(1, 3))
def test_kept_voxels_of_a_tile_saw_no_padding(spec: UNetSpec, periods: int) -> None:
    kept = [periods * s for s in spec.total_stride]
    tile, (before, after) = spec.tile_input(kept), spec.halo
    output = spec.output_shape(tile)
    for axis in range(spec.dims):
        assert tile[axis] >= before[axis] + kept[axis] + after[axis]
        assert output[axis] >= kept[axis] + before[axis] - spec.margin[axis]
        assert spoilt_kept_voxels(spec, axis, before[axis], tile[axis], kept[axis]) == 0


@given(specs(), st.integers(1, 3))
def test_kept_voxels_see_what_they_see_in_a_longer_tile(spec: UNetSpec, periods: int) -> None:
    kept = [periods * s for s in spec.total_stride]
    tile = spec.tile_input(kept)
    for axis, stride in enumerate(spec.total_stride):
        first = spec.halo[0][axis] - spec.margin[axis]
        short = Walk(spec, axis).output(tile[axis])[:, first : first + kept[axis]]
        ahead = 2 * stride
        long = Walk(spec, axis).output(tile[axis] + 4 * stride)[:, first + ahead : first + ahead + kept[axis]]
        np.testing.assert_array_equal(short[:2] + ahead, long[:2])
        assert not long[2].any()


@given(specs(padding="same"))
def test_a_padded_network_needs_every_period_of_its_halo(spec: UNetSpec) -> None:
    for axis, stride in enumerate(spec.total_stride):
        before, after = spec.halo[0][axis], spec.halo[1][axis]
        assert before % stride == after % stride == 0
        length = before + stride + after
        if before:
            assert spoilt_kept_voxels(spec, axis, before - stride, length - stride, stride) > 0
        if after:
            assert spoilt_kept_voxels(spec, axis, before, length - stride, stride) > 0


@given(specs(padding="valid"))
def test_an_unpadded_network_loses_only_what_its_far_end_padding_spoilt(spec: UNetSpec) -> None:
    tile = spec.round_up([n + 1 for n in spec.tile_input(spec.total_stride)])
    for axis, n in enumerate(tile):
        before, after = spec.halo[0][axis], spec.halo[1][axis]
        _, _, spoilt = Walk(spec, axis).output(n)
        beyond = after - spec.margin[axis]
        assert before == spec.margin[axis]
        assert spoilt.tolist() == [0] * (len(spoilt) - beyond) + [1] * beyond


# Records and refusals


@given(specs())
def test_a_record_survives_json(spec: UNetSpec) -> None:
    assert UNetSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@given(specs(), st.integers(1, 60))
def test_a_shape_of_no_use_is_refused_with_the_next_good_one(spec: UNetSpec, length: int) -> None:
    shape = (length,) * spec.dims
    assume(not spec.accepts(shape))
    with pytest.raises(InputError) as refusal:
        spec.output_shape(shape)
    assert str(spec.round_up(shape)) in str(refusal.value)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"dims": 4}, "dims must be 2 or 3, got 4"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"base_channels": 0}, "base_channels must be at least 1"),
        ({"in_channels": 0}, "in_channels must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"dropout": -0.1}, "dropout must be at least 0"),
        ({"depth": 2, "pool": [[2, 2]]}, "pool needs 2 windows"),
        ({"depth": 1, "pool": [[2, 2, 2]]}, "of 2 lengths"),
        ({"depth": 1, "pool": [[0, 2]]}, "pool needs 1 windows"),
        ({"kernel": 4}, "kernel needs odd lengths"),
        ({"kernel": [3]}, "on 2 axes"),
        ({"depth": 2, "kernel": [[3, 3], [3, 3]]}, "each of 3 levels"),
    ],
)
def test_numbers_of_no_use_are_refused_with_rule_and_value(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        UNetSpec.build(**numbers)


def test_a_record_with_an_unknown_key_is_refused() -> None:
    with pytest.raises(InputError, match="w_0"):
        UNetSpec.from_dict(UNetSpec.build().to_dict() | {"w_0": 1})


def test_a_shape_of_other_dimensions_is_refused() -> None:
    assert not UNetSpec.build(dims=2).accepts((572, 572, 572))
    with pytest.raises(InputError, match="2-D network needs 2 lengths"):
        UNetSpec.build(dims=2).round_up((572,))


def test_more_channels_cost_more_memory() -> None:
    small, large = UNetSpec.build(base_channels=8), UNetSpec.build(base_channels=64)
    assert small.activation_bytes((572, 572)) < large.activation_bytes((572, 572))
    assert small.activation_bytes((572, 572)) >= 4 * 572 * 572 * 8 * 3
