"""Tiles stand where the network may stand, cover what is segmented, and blends sum to one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.architecture import UNetSpec
from unetflow.geometry import Box
from unetflow.numerics.rescale import source_box
from unetflow.stages.tiles import Tiling

SPECS = st.builds(
    UNetSpec.build,
    dims=st.sampled_from([2, 3]),
    depth=st.integers(1, 3),
    padding=st.sampled_from(["valid", "same"]),
    upsample=st.sampled_from(["transpose", "resize"]),
)


@st.composite
def tilings(draw: st.DrawFn, mode: str = "exact") -> Tiling:
    spec = draw(SPECS)
    n_lead = draw(st.integers(0, 1)) if spec.dims == 2 else 0
    start = tuple(draw(st.integers(0, 40)) for _ in range(n_lead + spec.dims))
    stop = tuple(a + draw(st.integers(1, 60)) for a in start)
    seen = tuple(draw(st.sampled_from([1.0, 1.0, 2.0, 0.5, 3.7, 8.0, 0.125])) for _ in range(spec.dims))
    ratio = draw(st.sampled_from([(), (1.0,) * n_lead + seen]))
    overlap = draw(st.sampled_from([0.0, 0.125, 0.25, 0.5]))
    tiling = Tiling(spec, Box(start, stop), (1,) * len(start), draw(st.booleans()), mode, overlap, ratio)  # type: ignore[arg-type]
    return replace(tiling, tile=(1,) * n_lead + tuple(s * draw(st.integers(1, 5)) for s in tiling.unit))


@given(tilings(), st.data())
def test_each_voxel_of_a_box_is_kept_by_one_tile(tiling: Tiling, data: st.DataObject) -> None:
    ends = [
        sorted(data.draw(st.lists(st.integers(a, b), min_size=2, max_size=2, unique=True)))
        for a, b in zip(tiling.domain.start, tiling.domain.stop, strict=True)
    ]
    box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
    tiles = list(tiling.touching(box))
    assert sum(tile.kept.intersect(box).size for tile in tiles) == box.size
    assert len({tile.kept.start for tile in tiles}) == len(tiles) == tiling.count(box)


@settings(max_examples=50)
@given(st.one_of(tilings(), tilings("blend")))
def test_a_tile_reads_whole_strides_and_keeps_what_saw_no_padding(tiling: Tiling) -> None:
    spec, lead = tiling.spec, tiling.n_lead
    for tile in tiling.touching(tiling.domain):
        read = tile.source.shape[lead:]
        assert read == tiling.input_shape
        assert spec.accepts(read)
        output = spec.output_shape(read)
        before = tiling.halo[0]
        for axis in range(spec.dims):
            # The input starts a whole number of strides, and the halo, from the volume's first voxel.
            assert (tile.source.start[lead + axis] + before[axis]) % spec.total_stride[axis] == 0
            seen = tile.seen[axis]
            assert 0 <= seen.start < seen.stop <= output[axis]
            # Output voxel i stands at input voxel i + margin.
            assert tile.source.start[lead + axis] + spec.margin[axis] + seen.start == tile.made.start[lead + axis]
            assert seen.stop - seen.start == tile.made.shape[lead + axis]
            if tiling.mode == "exact":
                halo = tiling.halo
                assert tile.made.start[lead + axis] - tile.source.start[lead + axis] >= halo[0][axis]
                assert tile.source.stop[lead + axis] - tile.made.stop[lead + axis] >= halo[1][axis]
        back = [1 / r for r in tiling.ratio] or [1.0] * tile.kept.ndim
        assert tile.made == source_box(tile.kept, back)


@given(tilings("blend"))
def test_the_weights_of_a_blend_sum_to_one_at_each_voxel(tiling: Tiling) -> None:
    box = tiling.domain
    total = np.zeros(box.shape)
    for tile in tiling.touching(box):
        part = tile.kept.intersect(box)
        weight = np.ones(part.shape)
        for axis, along in enumerate(tiling.weights(tile, part)):
            weight = weight * along.reshape([-1 if a == axis else 1 for a in range(box.ndim)])
        assert (weight >= 0).all()
        total[part.relative_to(box).slices] += weight
    assert np.abs(total - 1).max() < 1e-5


@pytest.mark.parametrize(("overlap", "expected"), [(0.0, 96), (0.25, 72), (0.5, 48)])
def test_windows_of_a_blend_stand_on_the_stride(overlap: float, expected: int) -> None:
    spec = UNetSpec.build(depth=3, padding="same")
    tiling = Tiling(spec, Box.of_shape((500, 500)), (96, 96), mode="blend", overlap=overlap)
    assert tiling.step == (expected, expected)
