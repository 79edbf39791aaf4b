"""The loss is the sum that the contract writes down."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unetflow.nn.loss import loss_terms, soft_dice_loss, weighted_loss

CASES = ("softmax", "sigmoid", "multilabel")


def draw(case: str, seed: int) -> tuple[Tensor, Tensor, Tensor, str]:
    rng = torch.Generator().manual_seed(seed)
    channels = {"softmax": 3, "sigmoid": 1, "multilabel": 2}[case]
    logits = torch.randn(2, channels, 4, 5, generator=rng) * 3
    shape = (2, 2, 4, 5) if case == "multilabel" else (2, 4, 5)
    target = torch.randint(0, 3 if case == "softmax" else 2, shape, generator=rng).to(torch.uint8)
    weight = torch.rand(shape, generator=rng) * 10
    ignored = torch.rand(2, 1, 4, 5, generator=rng) < 0.3
    weight[ignored.expand(shape) if case == "multilabel" else ignored[:, 0]] = 0
    return logits, target, weight, "softmax" if case == "softmax" else "sigmoid"


@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 1000))
def test_loss_is_the_weighted_cross_entropy_per_voxel_not_ignored(case: str, seed: int) -> None:
    logits, target, weight, head = draw(case, seed)
    z, t, w = (a.double().numpy() for a in (logits, target, weight))
    if case == "softmax":
        log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
        entropy = -np.take_along_axis(log_p, t[:, None].astype(int), 1)[:, 0]
        valid = w > 0
    else:
        z = z if case == "multilabel" else z[:, 0]
        p = 1 / (1 + np.exp(-z))
        entropy = -(t * np.log(p) + (1 - t) * np.log(1 - p))
        valid = (w > 0).any(1) if case == "multilabel" else w > 0
    expected = (w * entropy).sum() / valid.sum()
    loss = weighted_loss(logits, target, weight, head=head)  # type: ignore[arg-type]
    assert loss.dtype == torch.float32 and loss.ndim == 0
    assert loss.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("dice", [False, True])
@pytest.mark.parametrize("case", CASES)
@given(seed=st.integers(0, 1000))
def test_ignored_voxels_change_neither_loss_nor_gradient(case: str, dice: bool, seed: int) -> None:
    logits, target, weight, head = draw(case, seed)
    ignored = weight == 0
    other_target = torch.where(ignored, torch.full_like(target, 255), target)
    where = ignored if case == "multilabel" else ignored[:, None].expand_as(logits)
    other_logits = torch.where(where, logits + 5, logits)
    results = []
    for z, t in ((logits, target), (other_logits, other_target)):
        z = z.clone().requires_grad_()
        loss = weighted_loss(z, t, weight, head=head, dice=dice)  # type: ignore[arg-type]
        loss.backward()
        assert z.grad is not None
        assert not z.grad[where].any()
        results.append((loss.item(), z.grad))
    assert results[0][0] == pytest.approx(results[1][0], rel=1e-6)
    assert torch.allclose(results[0][1], results[1][1])


@pytest.mark.parametrize("dice", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_batch_in_which_all_is_ignored_loses_a_finite_number(case: str, dice: bool) -> None:
    logits, target, weight, head = draw(case, 0)
    loss = weighted_loss(logits, target, weight * 0, head=head, dice=dice)  # type: ignore[arg-type]
    assert loss.item() == 0


@pytest.mark.parametrize("case", CASES)
def test_terms_add_over_batches(case: str) -> None:
    logits, target, weight, head = draw(case, 1)
    whole = loss_terms(logits, target, weight, head=head)  # type: ignore[arg-type]
    halves = [
        loss_terms(logits[i : i + 1], target[i : i + 1], weight[i : i + 1], head=head)  # type: ignore[arg-type]
        for i in (0, 1)
    ]
    for whole_term, one, two in zip(whole, *halves, strict=True):
        assert whole_term.item() == pytest.approx((one + two).item(), rel=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_dice_loss_is_0_for_a_perfect_answer_and_almost_1_for_a_wrong_one(case: str) -> None:
    _, target, weight, head = draw(case, 2)
    weight = torch.ones_like(weight)
    if case == "softmax":
        perfect = torch.nn.functional.one_hot(target.long(), 3).movedim(-1, 1) * 200.0 - 100
    else:
        perfect = (target if case == "multilabel" else target[:, None]) * 200.0 - 100
    assert soft_dice_loss(perfect, target, weight, head=head).item() < 1e-3  # type: ignore[arg-type]
    assert soft_dice_loss(-perfect, target, weight, head=head).item() > 0.3  # type: ignore[arg-type]


def test_half_precision_logits_are_summed_in_float32() -> None:
    logits, target, weight, _ = draw("softmax", 3)
    half = weighted_loss(logits.bfloat16(), target, weight, head="softmax")
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(
        weighted_loss(logits.bfloat16().float(), target, weight, head="softmax").item(), rel=1e-6
    )
