"""Pictures of validation patches show where the network is wrong, and none of an earlier training is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.unit.nn.patches import Patches, squares
from unetflow.nn.board import Board
from unetflow.stages.predicted import ValidationPreviews

RED, BLUE = (255, 64, 51), (51, 140, 255)


def previews(folder: Path, patches: Patches, head: str = "softmax", margin: tuple[int, ...] = (0, 0)) -> (
    ValidationPreviews
):
    return ValidationPreviews(patches, lambda image, numbers: image.astype(np.float32), head, margin, folder)  # type: ignore[arg-type]


def colours(path: Path, colour: tuple[int, int, int]) -> int:
    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((np.abs(pixels - colour).max(-1) <= 2).sum())


@pytest.mark.parametrize(("dims", "head"), [(2, "softmax"), (2, "sigmoid"), (3, "softmax")])
def test_missed_voxels_are_red_and_added_ones_blue(tmp_path: Path, dims: int, head: str) -> None:
    patches = squares(4, dims=dims, length=9)
    patches.weight[:] = 1
    answers = {"missed": -5.0, "added": 5.0}

    def predict(kind: str, image: np.ndarray) -> torch.Tensor:
        height = torch.full((1, 1, *image.shape[2:]), answers[kind])
        return height if head == "sigmoid" else torch.cat([torch.zeros_like(height), height], 1)

    for step, kind in enumerate(answers, start=1):
        previews(tmp_path, patches, head, (0,) * dims)(step, lambda image, kind=kind: predict(kind, image))
    missed, added = (tmp_path / f"validation-{step:08d}.png" for step in (1, 2))
    assert colours(missed, RED) > 1000 and colours(missed, BLUE) == 0
    assert colours(added, BLUE) > 1000 and colours(added, RED) == 0


def test_ignored_voxels_are_no_errors(tmp_path: Path) -> None:
    patches = squares(2)
    patches.weight[:] = 0
    previews(tmp_path, patches)(1, lambda image: torch.ones(1, 2, *image.shape[2:]).cumsum(1))
    assert colours(tmp_path / "validation-00000001.png", BLUE) == 0


def test_an_output_smaller_than_the_image_is_drawn_at_its_place(tmp_path: Path) -> None:
    patches = squares(2, length=24)
    patches.target, patches.weight = patches.target[:, 4:20, 4:20], patches.weight[:, 4:20, 4:20]
    asked: list[tuple[int, ...]] = []

    def predict(image: np.ndarray) -> torch.Tensor:
        asked.append(image.shape)
        return torch.zeros(1, 2, 16, 16)

    previews(tmp_path, patches, margin=(4, 4))(1, predict)
    assert asked == [(1, 1, 24, 24)] * 2  # one at a time
    assert (tmp_path / "validation-00000001.png").exists()


def test_pictures_of_steps_that_come_again_are_removed_and_earlier_ones_stay(tmp_path: Path) -> None:
    for step in (5, 10, 15):
        (tmp_path / f"validation-{step:08d}.png").touch()
    (tmp_path / "patch-0000.png").touch()
    previews(tmp_path, squares(2))(10, lambda image: torch.zeros(1, 2, *image.shape[2:]))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "patch-0000.png", "validation-00000005.png", "validation-00000010.png"
    ]  # fmt: skip


def test_tensorboard_reads_scalars_and_pictures_and_drops_steps_that_came_again(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    told: list[dict[str, object]] = []
    first, folder = [], tmp_path / "board"
    for resumed in (False, True):
        board = Board(folder, told.append)
        if resumed:
            board({"event": "resumed", "step": 1})
        for step in (2, 3) if resumed else (1, 2, 3, 4):
            board({"event": "step", "step": step, "loss": step + 10.0 * resumed, "learning_rate": 0.1,
                   "gradient_norm": 1.0})  # fmt: skip
        board({"event": "validation", "step": 3, "is_best": True, "dice": 0.5, "dice/2": 0.25})
        pictures = previews(tmp_path, squares(2))
        pictures.board = board
        pictures(3, lambda image: torch.zeros(1, 2, *image.shape[2:]))
        board.close()
    first = accumulator.EventAccumulator(str(folder))
    first.Reload()
    assert [(e.step, e.value) for e in first.Scalars("train/loss")] == [(1, 1.0), (2, 12.0), (3, 13.0)]
    assert first.Scalars("validation/dice/2")[-1].value == 0.25
    assert first.Images("validation")[-1].step == 3
    assert told[0]["event"] == "step" and len(told) == 9
