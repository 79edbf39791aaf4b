"""What one sees of a training: a picture and a row at each validation, and TensorBoard where it is wanted."""

from __future__ import annotations

import csv
import importlib.util
import shutil
from pathlib import Path
from typing import Any

import project
import pytest

from unetflow.errors import InputError
from unetflow.settings import Settings
from unetflow.stages import train as stage


def settings_for(trained: Path, folder: Path, **train: Any) -> Settings:
    """Return settings of a run of its own with the same dataset."""
    shutil.copytree(trained / "run" / "dataset.zarr", folder / "run" / "dataset.zarr")
    shutil.copytree(trained / "run" / ".unetflow" / "prepare", folder / "run" / ".unetflow" / "prepare")
    return project.settings_in(folder, train=train)


def test_each_validation_leaves_a_picture_a_row_and_a_place_on_the_board(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = settings_for(trained, tmp_path, steps=4, validate_every=2, tensorboard=True)
    result = stage.train(settings)
    run = tmp_path / "run"
    names = sorted(path.name for path in (run / "previews").glob("validation-*.png"))
    assert names == ["validation-00000002.png", "validation-00000004.png"]
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    for name in ("pixel_error", "dice", "iou", "adapted_rand_error"):
        assert float(rows[-1][name]) == pytest.approx(result[f"validation_{name}"])
        assert board.Scalars(f"validation/{name}")[-1].value == pytest.approx(float(rows[-1][name]), rel=1e-5)
    assert [event.step for event in board.Images("validation")] == [2, 4]


def test_without_the_package_tensorboard_is_refused_by_the_plan(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_for(trained, tmp_path, steps=2, tensorboard=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'unetflow\[tensorboard\]', or set train.tensorboard = false"):
        stage.train(settings)
    assert not (tmp_path / "run" / "metrics.csv").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_training_goes_on_only_with_the_supervision_it_began_with(trained: Path) -> None:
    found = [
        stage.fingerprint(stage.plan(project.settings_in(trained, model={"deep_supervision": deep})))
        for deep in (False, True)
    ]
    assert found[0] != found[1]
