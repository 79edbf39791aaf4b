"""Training learns, stops and goes on as if it had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.nn.patches import Patches, squares
from unetflow.architecture import UNetSpec
from unetflow.errors import InputError, StageError
from unetflow.nn.augment import Augmentation
from unetflow.nn.checkpoint import load_latest
from unetflow.nn.history import read_history
from unetflow.nn.loop import TrainResult, train
from unetflow.nn.recipe import Recipe
from unetflow.nn.unet import UNet

SPEC = UNetSpec.build(depth=1, base_channels=4, padding="same", dropout=0.3)
CHANGED = Augmentation(brightness=0.1, contrast=0.1, noise=0.1)


def prepare(image: Any, numbers: Any) -> Any:
    return ((image.astype(np.float32) - 100) / 60).astype(np.float32)


def run(folder: Path, steps: int = 12, spec: UNetSpec = SPEC, **how: Any) -> TrainResult:
    loop = {key: how.pop(key) for key in ("on_event", "should_stop", "metrics", "initial_state") if key in how}
    validation = how.pop("validation", squares(4, seed=9))
    source = how.pop("source", squares(8))
    recipe = Recipe(**{
        "steps": steps, "learning_rate": 1e-2, "momentum": 0.9, "batch_size": 2, "validate_every": 3, **how
    })  # fmt: skip
    return train(source, validation, spec=spec, recipe=recipe, folder=folder, prepare=prepare, device="cpu", **loop)


def stop_at(step: int) -> dict[str, Any]:
    """Arguments that stop a training after a step."""
    seen: list[int] = []
    return {
        "on_event": lambda event: seen.append(event["step"]),
        "should_stop": lambda: bool(seen) and seen[-1] >= step,
    }


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("how", "spec"),
    [
        ({"optimizer": "sgd", "momentum": 0.99}, {}),
        ({"optimizer": "adam", "schedule": "cosine", "clip": 1.0}, {}),
        ({"optimizer": "adamw", "weight_decay": 0.1, "ema": 0.9, "schedule": "poly"}, {}),
        ({"ema": 0.9, "augmentation": CHANGED}, {"norm": "batch"}),
        ({"loss": "cross_entropy+dice"}, {"norm": "layer", "upsample": "resize", "skip": "sum"}),
    ],
    ids=["sgd", "adam", "adamw with ema", "batch norm", "layer norm"],
)
def test_going_on_gives_the_bits_of_a_run_that_was_not_stopped(
    how: dict[str, Any], spec: dict[str, Any], tmp_path: Path
) -> None:
    drawn = UNetSpec.build(**{**SPEC.to_dict(), **spec})
    whole = run(tmp_path / "whole", spec=drawn, **how)
    stopped = run(tmp_path / "parts", spec=drawn, **how, **stop_at(5))
    assert (stopped.step, stopped.is_stopped) == (5, True)
    parts = run(tmp_path / "parts", spec=drawn, **how)
    assert (parts.step, parts.is_stopped) == (12, False)
    assert (parts.best_step, parts.best_score, parts.scores) == (whole.best_step, whole.best_score, whole.scores)
    assert same(parts.state, whole.state)
    one, two = load_latest(tmp_path / "whole"), load_latest(tmp_path / "parts")
    assert one is not None and two is not None
    assert one.state == two.state
    assert all(same(one.groups[name], two.groups[name]) for name in one.groups)


def test_more_steps_go_on_from_the_last(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", validation=None)
    run(tmp_path / "parts", steps=5, validation=None)
    assert same(run(tmp_path / "parts", validation=None).state, whole.state)


def test_a_finished_training_gives_its_result_again(tmp_path: Path) -> None:
    first = run(tmp_path)
    events: list[Any] = []
    again = run(tmp_path, on_event=events.append)
    assert [event["event"] for event in events] == ["resumed"]
    assert same(first.state, again.state)
    assert (again.best_step, again.best_score) == (first.best_step, first.best_score)


def test_a_damaged_checkpoint_costs_steps_but_not_the_result(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    folder = tmp_path / "parts"
    run(folder, **stop_at(4))
    run(folder, **stop_at(7))
    newest = max(folder.iterdir())
    newest.write_bytes(newest.read_bytes()[:100])
    events: list[Any] = []
    assert same(run(folder, on_event=events.append).state, whole.state)
    assert events[0] == {"event": "resumed", "step": 4}


@pytest.mark.parametrize("head", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dims", [2, 3])
def test_training_finds_the_squares(head: Any, dims: int, tmp_path: Path) -> None:
    out_channels = 2 if head == "softmax" else 1
    spec = UNetSpec.build(dims=dims, depth=1, base_channels=8, padding="same", head=head, out_channels=out_channels)
    length = 16 if dims == 2 else 8
    metrics = tmp_path / "metrics.csv"
    result = run(
        tmp_path,
        60,
        spec,
        optimizer="adam",
        learning_rate=3e-3,
        source=squares(8, length=length, dims=dims),
        validation=squares(4, seed=1, length=length, dims=dims),
        metrics=metrics,
        validate_every=20,
    )
    losses = [float(row["validation_loss"]) for row in read_history(metrics)]
    assert losses[-1] < 0.5 * losses[0]
    assert result.scores["dice"] > 0.8


def test_multilabel_targets_train_too(tmp_path: Path) -> None:
    def masks(seed: int) -> Patches:
        one = squares(8, seed=seed)
        target = np.stack([one.target, 1 - one.target], 1)
        return Patches(one.image, target, np.stack([one.weight] * 2, 1))

    spec = UNetSpec.build(depth=1, base_channels=8, padding="same", head="sigmoid", out_channels=2)
    how = {"optimizer": "adam", "learning_rate": 3e-3, "validate_every": 60}
    result = run(tmp_path, 60, spec, source=masks(0), validation=masks(1), **how)
    assert result.scores["dice"] > 0.8


def test_the_best_weights_by_validation_are_kept_and_else_the_last(tmp_path: Path) -> None:
    seen: list[tuple[float, int]] = []

    def note(event: dict[str, Any]) -> None:
        if event["event"] == "validation":
            seen.append((event["loss"], event["step"]))

    result = run(tmp_path / "a", learning_rate=0.3, on_event=note)
    assert [step for _, step in seen] == [3, 6, 9, 12]
    assert (result.best_score, result.best_step) == min(seen)
    last = run(tmp_path / "b", learning_rate=0.3, validation=None)
    found = load_latest(tmp_path / "b")
    assert found is not None and same(found.groups["model"], last.state)
    assert last.best_step is None and last.scores == {}


def test_the_average_is_what_is_kept_with_ema(tmp_path: Path) -> None:
    result = run(tmp_path, ema=0.9, validation=None)
    found = load_latest(tmp_path)
    assert found is not None
    assert same(found.groups["average"], result.state)
    assert not same(found.groups["model"], result.state)


def test_fine_tuning_begins_from_the_given_weights(tmp_path: Path) -> None:
    torch.manual_seed(7)
    state = UNet(SPEC).state_dict()
    result = run(tmp_path, 1, initial_state=state, learning_rate=0.0, validation=None)
    assert same(result.state, state)
    other = UNet(UNetSpec.build(depth=2, base_channels=4)).state_dict()
    with pytest.raises(InputError, match="fine-tune"):
        run(tmp_path / "other", 1, initial_state=other)


def test_checkpoints_of_another_network_or_optimiser_are_refused(tmp_path: Path) -> None:
    run(tmp_path, 2)
    with pytest.raises(InputError, match="architecture"):
        run(tmp_path, 4, UNetSpec.build(depth=1, base_channels=8, padding="same"))


def test_metrics_go_on_without_a_row_twice(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    run(tmp_path / "checkpoints", metrics=metrics, **stop_at(7))
    run(tmp_path / "checkpoints", metrics=metrics)
    rows = read_history(metrics)
    assert [int(row["step"]) for row in rows] == [3, 6, 9, 12]
    assert [float(row["epoch"]) for row in rows] == [0.75, 1.5, 2.25, 3.0]


def test_a_loss_that_is_no_number_is_skipped_and_ends_training_after_ten(tmp_path: Path) -> None:
    source = squares(4)
    events: list[Any] = []

    def blind(image: Any, numbers: Any) -> Any:
        return np.full(image.shape, np.nan, np.float32)

    with pytest.raises(StageError, match="learning_rate"):
        train(
            source,
            None,
            spec=SPEC,
            recipe=Recipe(steps=50, learning_rate=0.1),
            folder=tmp_path,
            prepare=blind,
            on_event=events.append,
        )
    assert [event["event"] for event in events] == ["skipped"] * 9
    assert load_latest(tmp_path) is None


def test_checkpoints_are_made_as_time_goes_by(tmp_path: Path) -> None:
    events: list[Any] = []
    run(tmp_path, 4, checkpoint_minutes=0.0, on_event=events.append)
    assert [event["step"] for event in events if event["event"] == "checkpoint"] == [1, 2, 3, 4]


def test_the_callers_random_state_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    run(tmp_path, 2)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("wrong", [{"loss": "hinge"}, {"ema": 1.0}, {"batch_size": 0}, {"schedule": "up"}])
def test_a_recipe_that_cannot_be_followed_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="use "):
        Recipe(**{"steps": 1, "learning_rate": 0.1, **wrong})
