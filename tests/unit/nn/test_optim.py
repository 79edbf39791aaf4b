"""Schedules, the optimiser's memory, and averages."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.nn.optim import (
    build_optimizer,
    learning_rate_at,
    optimizer_tensors,
    restore_optimizer,
    update_average,
)
from unetflow.nn.unet import UNet


@given(st.sampled_from(["constant", "cosine", "poly"]), st.integers(1, 100), st.floats(1e-6, 1.0))
def test_a_learning_rate_starts_at_its_base_and_never_grows(schedule: Any, steps: int, base: float) -> None:
    rates = [learning_rate_at(schedule, step, steps, base) for step in range(steps + 1)]
    assert rates[0] == pytest.approx(base)
    assert all(one >= two >= 0 for one, two in zip(rates, rates[1:], strict=False))
    assert rates[-1] == (base if schedule == "constant" else pytest.approx(0, abs=1e-12))


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match="use constant"):
        learning_rate_at("steep", 0, 1, 1.0)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="use sgd"):
        build_optimizer(torch.nn.Linear(1, 1), "lion", learning_rate=1, momentum=0, weight_decay=0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_an_optimiser_with_a_restored_memory_goes_the_same_way(name: Any) -> None:
    torch.manual_seed(0)
    spec = UNetSpec.build(depth=1, base_channels=2)
    how = {"learning_rate": 0.01, "momentum": 0.9, "weight_decay": 0.01}
    one, two = UNet(spec), UNet(spec)
    first = build_optimizer(one, name, **how)
    gradients = [[torch.randn_like(p) for p in one.parameters()] for _ in range(4)]

    def step(model: UNet, optimizer: torch.optim.Optimizer, number: int) -> None:
        for parameter, gradient in zip(model.parameters(), gradients[number], strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()

    for number in (0, 1):
        step(one, first, number)
    two.load_state_dict(one.state_dict())
    second = build_optimizer(two, name, **how)
    restore_optimizer(second, optimizer_tensors(first))
    for number in (2, 3):
        step(one, first, number)
        step(two, second, number)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_an_average_of_equal_weights_stays_and_of_others_follows() -> None:
    torch.manual_seed(0)
    spec = UNetSpec.build(depth=1, base_channels=2, norm="batch")
    model, average = UNet(spec), UNet(spec)
    before = [p.detach().clone() for p in average.parameters()]
    update_average(average, model, 10**6, 0.75)
    for old, mean, new in zip(before, average.parameters(), model.parameters(), strict=True):
        assert torch.allclose(mean, 0.75 * old + 0.25 * new, atol=1e-6)
    # At the start the average is mostly the model itself.
    update_average(average, model, 0, 0.999)
    for old, mean, new in zip(before, average.parameters(), model.parameters(), strict=True):
        assert ((mean - new).abs() <= 0.11 * (old - new).abs() + 1e-6).all()
