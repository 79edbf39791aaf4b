"""Scores of pairs that spill to disk are, to the last digit, those of the whole table in memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from scipy import ndimage

from unetflow.numerics.contingency import Contingency, add, contingency
from unetflow.numerics.metrics import object_scores
from unetflow.numerics.summation import pairwise_sum
from unetflow.stages.pair_scores import score_pairs
from unetflow.stages.score import score
from unetflow.stages.sorted_runs import Sorter


def scores_of(rows: list[np.ndarray] | Iterator[np.ndarray], folder: Path, most: int) -> dict[str, float]:
    found, matches = score_pairs(rows, folder, most)
    return {**found, **matches.scores()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.sampled_from([1, 7, 40, 10**6]), st.booleans())
@examples(max_examples=40)
def test_spilled_pairs_score_as_the_whole_table_does(
    folder: Path, seed: int, n_labels: int, most: int, halves: bool
) -> None:
    rng = np.random.default_rng(seed)
    truth = np.repeat(rng.integers(0, n_labels, 90), 4)
    # Objects cut into halves tie at an IoU of one half, on either side.
    seg = np.repeat(rng.integers(0, 3 * n_labels, 180), 2) if halves else truth + (rng.random(360) < 0.2)
    seg, truth = (seg, truth) if seed % 2 else (truth, seg)
    # Labels are any whole numbers, in no order.
    labels = np.concatenate([[0], rng.permutation(10**12 + np.arange(4 * n_labels))])
    tables = [contingency(labels[a], labels[b]) for a, b in zip(np.split(seg, 6), np.split(truth, 6), strict=True)]
    whole = Contingency.empty()
    for table in tables:
        whole = add(whole, table)
    found = scores_of([np.stack([*t.pairs.T, t.counts]) for t in tables], folder, most)
    np.testing.assert_equal(found, object_scores(whole))
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("sections", [False, True])
def test_a_small_budget_changes_no_score_of_a_volume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(5).random((2, 6, 40, 50))
    seg, truth = (ndimage.label(ndimage.gaussian_filter(n, 1.2) > 0.5)[0] for n in (noise[0], noise.mean(axis=0)))
    found = []
    for most in (2**20, 16):
        monkeypatch.setattr("unetflow.stages.comparison.MOST_RECORDS", most)
        found.append({k: v for k, v in score(seg, truth, sections=sections).items() if k != "seconds"})
    assert found[0] == found[1]
    assert 0 < found[0]["ap50"] < 1


def test_nothing_scores_as_an_empty_table_does(tmp_path: Path) -> None:
    with np.errstate(all="ignore"):
        np.testing.assert_equal(scores_of([], tmp_path, 8), object_scores(Contingency.empty()))


@pytest.mark.parametrize("n", [0, 1, 9, 127, 1000, 2**14, 2**14 + 1, 100_003])
def test_pieces_sum_to_the_bits_of_numpys_sum(n: int) -> None:
    rng = np.random.default_rng(n)
    values = rng.lognormal(0, 5, n)
    cuts = np.sort(rng.integers(0, n + 1, 9))
    assert pairwise_sum(np.split(values, cuts), n) == values.sum()


def test_many_runs_are_merged_in_the_order_of_their_keys(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    records = np.stack([*rng.integers(-20, 20, (2, 5000)), np.ones(5000, np.int64)], axis=1)
    sorter = Sorter(tmp_path, "run", 2, 3, most=32)
    for part in np.array_split(records, 700):
        sorter.add(part)
    found = np.concatenate(list(sorter.finish().pieces()))
    keys, counts = np.unique(records[:, :2], axis=0, return_counts=True)
    np.testing.assert_array_equal(found, np.column_stack([keys, counts]))


def test_four_times_the_pairs_take_no_more_memory(tmp_path: Path) -> None:
    def rows(n_rows: int) -> Iterator[np.ndarray]:
        for number in range(n_rows):
            ids = number * 1000 + np.arange(1, 1001)
            yield np.stack([ids, ids[::-1], np.full(1000, 5)])

    peaks = []
    for n_rows in (40, 160):
        tracemalloc.start()
        found = scores_of(rows(n_rows), tmp_path, 2**12)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found["ap50"] == 1.0
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 160 * 1000 * 24
