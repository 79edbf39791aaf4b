"""On a GPU: training in bf16, compiled, and by several ranks over NCCL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unetflow.architecture import UNetSpec
from unetflow.nn.accelerators import accelerators
from unetflow.nn.group import Group
from unetflow.nn.loop import TrainResult, train
from unetflow.nn.recipe import Recipe
from unetflow.runtime.cluster import open_client
from unetflow.runtime.ranks import run_ranks

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))  # spawned workers inherit it

import rank_tasks

pytestmark = pytest.mark.gpu

SPEC = UNetSpec.build(depth=2, base_channels=16, padding="same")


def run(
    folder: Path, device: str = "cuda", steps: int = 60, spec: UNetSpec = SPEC, **how: Any
) -> tuple[TrainResult, list[float]]:
    losses: list[float] = []

    def listen(event: dict[str, Any]) -> None:
        if event["event"] == "step":
            losses.append(event["loss"])

    result = train(
        rank_tasks.Squares(32, length=64),
        rank_tasks.Squares(8, seed=9, length=64),
        spec=spec,
        recipe=Recipe(steps=steps, learning_rate=1e-3, optimizer="adam", batch_size=8, **how),
        folder=folder,
        prepare=rank_tasks.prepare,
        on_event=listen,
        group=Group(device=torch.device(device)),
    )
    return result, losses


def test_float32_has_the_first_losses_of_a_processor(tmp_path: Path) -> None:
    spec = UNetSpec.build(depth=2, base_channels=16, padding="same", dropout=0.0)  # it draws other numbers there
    here = run(tmp_path / "cpu", "cpu", 10, spec, precision="float32")[1]
    there = run(tmp_path / "gpu", "cuda", 10, spec, precision="float32")[1]
    assert np.allclose(here, there, atol=1e-3)


@pytest.mark.parametrize("how", [{}, {"compile": True}, {"accumulate": 2}, {"ema": 0.9, "clip": 1.0}], ids=str)
def test_bf16_learns(how: dict[str, Any], tmp_path: Path) -> None:
    result, losses = run(tmp_path, precision="bf16", **how)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert result.scores["dice"] > 0.5
    assert result.wait < 0.5


def test_a_stopped_training_goes_on(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")[1]
    first = run(tmp_path / "parts", steps=25)[1]
    assert np.allclose([*first, *run(tmp_path / "parts")[1]], whole, atol=1e-2)


def train_on_gpus(rank: Any, *, folder: str, batch: int) -> dict[str, Any]:
    """Train on the GPU of a rank; return its losses."""
    from unetflow.stages.train import join_ranks

    losses: list[float] = []
    device = torch.device(f"cuda:{rank.device}")
    with join_ranks(rank, device) as group:
        train(
            rank_tasks.Squares(32, length=64),
            rank_tasks.Squares(8, seed=9, length=64),
            spec=SPEC,
            recipe=Recipe(steps=50, learning_rate=1e-3, batch_size=batch, precision="float32"),
            folder=folder,
            prepare=rank_tasks.prepare,
            on_event=lambda event: losses.append(event["loss"]) if event["event"] == "step" else None,
            group=group,
            beat=rank.beat,
        )
    return {"losses": losses, "world": rank.world, "device": str(device)}


def test_one_gpu_gets_one_rank_of_a_local_cluster_and_all_get_one_each(tmp_path: Path) -> None:
    n_gpus = len(accelerators())
    with open_client("local", workers=max(2, n_gpus), log_folder=tmp_path / "logs") as client:
        results = {
            most: run_ranks(
                train_on_gpus,
                {"folder": str(tmp_path / str(most)), "batch": 8},
                client,
                most=most,
                accelerators=accelerators,
            )
            for most in (1, 8)
        }
    assert results[1]["world"] == 1 and results[8]["world"] == min(8, n_gpus)
    assert np.allclose(results[1]["losses"], results[8]["losses"], atol=1e-4)
