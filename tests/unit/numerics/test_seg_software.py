"""SEG is what the Cell Tracking Challenge's software computes, for any blocks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import expand_labels

from unetflow.numerics.contingency import Contingency, add, contingency
from unetflow.numerics.metrics import Matches, object_matches

ctc = pytest.importorskip("ctc_metrics", reason="py-ctcmetrics is not installed")


def software_seg(folder: Path, frames: list[tuple[np.ndarray, np.ndarray]]) -> float:
    """Compute SEG of (segmentation, truth) frames with the challenge's software."""
    from ctc_metrics.metrics.technical.seg import seg
    from ctc_metrics.utils.representations import match

    found = []
    for number, frame in enumerate(frames):
        paths = [folder / f"{name}{number}.tif" for name in ("seg", "truth")]
        for path, labels in zip(paths, frame, strict=True):
            tifffile.imwrite(path, labels.astype(np.uint16))
        found.append(match(str(paths[1]), str(paths[0])))
    return float(seg([m[0] for m in found], [m[4] for m in found]))


def by_blocks(seg: np.ndarray, truth: np.ndarray, length: int) -> Matches:
    """Match objects from counts that are added over blocks."""
    table = Contingency.empty()
    for y in range(0, len(seg), length):
        for x in range(0, seg.shape[1], length):
            part = slice(y, y + length), slice(x, x + length)
            table = add(table, contingency(seg[part], truth[part]))
    return object_matches(table)


def test_seg_is_the_challenge_s_for_made_frames(tmp_path: Path) -> None:
    @settings(max_examples=10)
    @given(st.integers(0, 2**32 - 1), st.integers(7, 80))
    def check(seed: int, length: int) -> None:
        frames = []
        for k in range(2):
            smooth = ndimage.gaussian_filter(np.random.default_rng([seed, k]).random((60, 70)), 2)
            truth = ndimage.label(smooth > np.quantile(smooth, 0.6))[0]
            seg = np.roll(ndimage.label(smooth > np.quantile(smooth, 0.5 + 0.2 * k))[0], k, axis=0)
            frames.append((seg, truth))
        found = sum((by_blocks(seg, truth, length) for seg, truth in frames), Matches()).scores()["seg"]
        assert found == pytest.approx(software_seg(tmp_path, frames), abs=1e-9)

    check()


@pytest.mark.parametrize("name", ["DIC-C2DH-HeLa", "phc-c2dh-u373"])
def test_seg_is_the_challenge_s_on_its_own_frames(tmp_path: Path, data_folder: Path, name: str) -> None:
    files = sorted((data_folder / "ctc" / name).rglob("man_seg*.tif"))[:4]
    assert files, "the challenge's truth is part of the data"
    frames = []
    for number, file in enumerate(files):
        truth = tifffile.imread(file)
        seg = np.roll(expand_labels(truth, 2 * number), 3 * number, axis=1)
        seg[seg == np.unique(truth)[-1]] = 0  # one object is missed
        frames.append((seg, truth))
    found = sum((by_blocks(seg, truth, 200) for seg, truth in frames), Matches()).scores()["seg"]
    assert 0.3 < found < 1
    assert found == pytest.approx(software_seg(tmp_path, frames), abs=1e-9)
