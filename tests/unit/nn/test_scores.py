"""Validation scores add over batches and are those of plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.nn.test_loss import CASES, draw
from unetflow.nn.loss import weighted_loss
from unetflow.nn.scores import Tally


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 500))
def test_scores_are_those_of_all_voxels_at_once(case: str, seed: int) -> None:
    logits, target, weight, head = draw(case, seed)
    tally = Tally(head)  # type: ignore[arg-type]
    for i in (0, 1):
        tally.add(logits[i : i + 1], target[i : i + 1], weight[i : i + 1])
    scores = tally.scores()
    z, t, valid = logits.numpy(), target.numpy(), weight.numpy() > 0
    guess = z.argmax(1) if case == "softmax" else (z > 0) if case == "multilabel" else z[:, 0] > 0
    assert scores["loss"] == pytest.approx(
        weighted_loss(logits, target, weight, head=head).item(),
        rel=1e-4,  # type: ignore[arg-type]
    )
    assert scores["pixel_error"] == pytest.approx((guess != t)[valid].mean())
    dice, iou = [], []
    for k in (1, 2) if case == "softmax" else (0, 1) if case == "multilabel" else (1,):
        if case == "multilabel":
            a, b = (guess & valid)[:, k], (t * valid)[:, k] > 0
        else:
            a, b = (guess == k) & valid, (t == k) & valid
        dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        iou.append((a & b).sum() / (a | b).sum())
    assert scores["dice"] == pytest.approx(np.mean(dice))
    assert scores["iou"] == pytest.approx(np.mean(iou))


def test_a_class_that_neither_occurs_nor_is_found_scores_one() -> None:
    tally = Tally("softmax")
    tally.add(torch.tensor([[[5.0], [0.0]]]), torch.zeros(1, 1, dtype=torch.uint8), torch.ones(1, 1))
    assert tally.scores() == pytest.approx({"loss": 0.0067, "pixel_error": 0, "dice": 1, "iou": 1}, abs=1e-4)
