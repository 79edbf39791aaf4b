"""Training learns, stops and goes on as if it had never stopped."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.nn.patches import Patches, squares
from unetflow.architecture import UNetSpec
from unetflow.errors import InputError, StageError
from unetflow.nn.augment import Augmentation
from unetflow.nn.checkpoint import load_latest
from unetflow.nn.dropout import SampleDropout
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


def stop_at(step: int, events: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    """Arguments that stop a training after a step."""
    seen = [] if events is None else events
    return {"on_event": seen.append, "should_stop": lambda: bool(seen) and seen[-1]["step"] >= step}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("how", "spec"),
    [
        ({"optimizer": "sgd", "momentum": 0.99, "accumulate": 2}, {}),
        ({"optimizer": "adam", "schedule": "cosine", "clip": 1.0}, {}),
        ({"optimizer": "adamw", "weight_decay": 0.1, "ema": 0.9, "schedule": "poly", "monitor": "dice"}, {}),
        ({"ema": 0.9, "augmentation": CHANGED, "deep_supervision": True}, {"norm": "batch", "depth": 2}),
        ({"loss": "cross_entropy+dice", "patience": 2}, {"norm": "layer", "upsample": "resize", "skip": "sum"}),
    ],
    ids=["sgd, accumulated", "adam", "adamw with ema", "batch norm, supervised", "layer norm, patience"],
)
@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(stops=st.sets(st.integers(1, 11), min_size=1, max_size=3).map(sorted))
def test_going_on_from_any_steps_gives_the_bits_of_a_run_that_was_not_stopped(
    how: dict[str, Any], spec: dict[str, Any], stops: list[int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("runs")
    drawn = UNetSpec.build(**{**SPEC.to_dict(), "pool": None, "kernel": None, **spec})
    events: dict[str, list[dict[str, Any]]] = {"whole": [], "parts": []}
    whole = run(folder / "whole", spec=drawn, on_event=events["whole"].append, **how)
    for stop in stops:
        stopped = run(folder / "parts", spec=drawn, **how, **stop_at(stop, events["parts"]))
        assert (stopped.step, stopped.is_stopped) == (min(stop, whole.step), stop < whole.step)
    parts = run(folder / "parts", spec=drawn, on_event=events["parts"].append, **how)
    assert (parts.step, parts.is_stopped) == (whole.step, False)
    assert (parts.best_step, parts.best_score) == (whole.best_step, whole.best_score)
    assert same(parts.state, whole.state)
    losses = {name: [(e["step"], e["loss"]) for e in some if e["event"] in ("step", "validation")]
              for name, some in events.items()}  # fmt: skip
    assert losses["parts"] == losses["whole"]
    one, two = load_latest(folder / "whole"), load_latest(folder / "parts")
    assert one is not None and two is not None
    assert one.state == two.state
    assert all(same(one.groups[name], two.groups[name]) for name in one.groups)


def test_accumulated_batches_make_the_step_of_one_large_batch(tmp_path: Path) -> None:
    large = run(tmp_path / "large", batch_size=8, validation=None)
    small = run(tmp_path / "small", batch_size=2, accumulate=4, validation=None)
    assert large.state.keys() == small.state.keys()
    assert all(torch.allclose(large.state[name], small.state[name], atol=1e-5) for name in large.state)
    assert not same(large.state, run(tmp_path / "other", batch_size=2, validation=None).state)


def test_training_ends_early_where_validation_gets_no_better(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    how = {"learning_rate": 1e-9, "momentum": 0.0, "patience": 2, "monitor": "dice"}
    result = run(tmp_path, 60, on_event=seen.append, **how)
    dice = [event["dice"] for event in seen if event["event"] == "validation"]
    assert len(set(dice)) == 1 and len(dice) == 3  # the first, and two that are no better
    assert (result.step, result.is_stopped, result.best_step) == (9, False, 3)
    again = run(tmp_path, 60, **how)
    assert again.step == 9 and same(again.state, result.state)
    assert run(tmp_path, 60, **{**how, "patience": 4}).step == 15


def test_the_best_weights_are_those_of_the_score_that_is_watched(tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    result = run(tmp_path, 18, learning_rate=0.05, monitor="dice", on_event=seen.append)
    dice = {event["step"]: event["dice"] for event in seen if event["event"] == "validation"}
    assert result.best_score == max(dice.values())
    assert result.best_step == min(step for step, score in dice.items() if score == result.best_score)
    with pytest.raises(InputError, match="monitor must be"):
        run(tmp_path / "other", monitor="beauty")


def test_masks_of_dropout_belong_to_the_sample(tmp_path: Path) -> None:
    def masks(numbers: list[int], seed: int = 0) -> torch.Tensor:
        layer = SampleDropout(0.5)
        layer.use_streams(seed, numbers, torch.device("cpu"))
        ones = torch.ones(len(numbers), 3, 8, 8)
        return torch.stack([layer(ones), layer(ones)], 1)

    together = masks([4, 5, 6])
    assert torch.equal(together[1:2], masks([5])) and torch.equal(together[2:], masks([6]))
    assert not torch.equal(together[0], together[1]) and not torch.equal(together, masks([4, 5, 6], seed=1))
    assert not torch.equal(together[:, 0], together[:, 1])  # two layers of one pass
    assert set(together.unique().tolist()) == {0.0, 2.0} and 0.4 < together.mean() / 2 < 0.6


def test_the_share_of_waiting_for_patches_is_told(tmp_path: Path) -> None:
    class Slow(Patches):
        def read(self, numbers: Any) -> Any:
            time.sleep(0.05)
            return super().read(numbers)

    quick, fast = squares(8), run(tmp_path / "fast", 8, validation=None)
    slow = Slow(quick.image, quick.target, quick.weight, shard_size=1)
    waits = [run(tmp_path / "slow", 8, validation=None, source=slow, memory_bytes=1).wait, fast.wait]
    assert 1 >= waits[0] > 0.5 and waits[0] > waits[1] >= 0


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
