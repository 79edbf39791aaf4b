"""Validation scores add over batches and are those of plain NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.nn.test_loss import CASES, draw
from unetflow.errors import InputError
from unetflow.nn.loss import weighted_loss
from unetflow.nn.scores import LARGER_IS_BETTER, Tally, larger_is_better


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
    dice, iou, error = [], [], []
    for k in (1, 2) if case == "softmax" else (0, 1) if case == "multilabel" else (1,):
        if case == "multilabel":
            a, b = (guess & valid)[:, k], (t * valid)[:, k] > 0
        else:
            a, b = (guess == k) & valid, (t == k) & valid
        dice.append(2 * (a & b).sum() / (a.sum() + b.sum()))
        iou.append((a & b).sum() / (a | b).sum())
        error.append((a ^ b).sum() / (valid[:, k] if case == "multilabel" else valid).sum())
    assert scores["dice"] == pytest.approx(np.mean(dice))
    assert scores["iou"] == pytest.approx(np.mean(iou))
    names = {"softmax": (1, 2), "sigmoid": (), "multilabel": (0, 1)}[case]
    for number, k in enumerate(names):
        each = [scores[f"{name}/{k}"] for name in ("dice", "iou", "pixel_error")]
        assert each == pytest.approx([dice[number], iou[number], error[number]])
    assert len(scores) == len(LARGER_IS_BETTER) + 3 * len(names)


def test_a_class_that_neither_occurs_nor_is_found_scores_one() -> None:
    tally = Tally("softmax")
    tally.add(torch.tensor([[[5.0], [0.0]]]), torch.zeros(1, 1, dtype=torch.uint8), torch.ones(1, 1))
    expected = {"loss": 0.0067, "pixel_error": 0, "dice": 1, "iou": 1, "adapted_rand_error": 0}
    assert tally.scores() == pytest.approx(expected, abs=1e-4)


@given(seed=st.integers(0, 500))
def test_the_rand_error_is_scikit_image_s_on_all_patches_side_by_side(seed: int) -> None:
    """Side by side, but apart: objects of different patches are different objects."""
    from skimage.measure import label
    from skimage.metrics import adapted_rand_error

    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 2, 12, 9, generator=rng)
    target = (torch.rand(3, 12, 9, generator=rng) < 0.7).to(torch.uint8)
    weight = (torch.rand(3, 12, 9, generator=rng) < 0.9).float()
    tally = Tally("softmax")
    tally.add(logits[:1], target[:1], weight[:1])
    tally.add(logits[1:], target[1:], weight[1:])
    truth, guess = (
        label(np.pad(mask.numpy(), ((0, 0), (0, 1), (0, 0))).reshape(-1, 9), connectivity=1)
        for mask in (target * (weight > 0), logits.argmax(1))
    )
    rest = 1000 + np.arange(len(guess))[:, None] // 13  # left out of one patch is not left out of another
    guess = np.where(guess == 0, rest, guess)
    expected = adapted_rand_error(truth, guess, ignore_labels=(0,))[0]
    assert tally.scores()["adapted_rand_error"] == pytest.approx(expected)


def test_every_score_says_which_way_it_is_better_and_others_are_refused() -> None:
    logits, target, weight, _ = draw("softmax", 0)
    tally = Tally("softmax")
    tally.add(logits, target, weight)
    ways = {name: larger_is_better(name, 3) for name in tally.scores()}
    assert {name for name, larger in ways.items() if larger} == {"dice", "dice/1", "dice/2", "iou", "iou/1", "iou/2"}
    assert larger_is_better("dice/0", 2, is_multilabel=True)
    for name, n_classes in (("dise", 3), ("dice/3", 3), ("dice/0", 3), ("dice/1", 2)):
        with pytest.raises(InputError, match=r"train.monitor must be .*adapted_rand_error.*use loss"):
            larger_is_better(name, n_classes)
