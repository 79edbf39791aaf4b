"""What a person sees while training, and how results and refusals are printed."""

from __future__ import annotations

import errno
import logging
from typing import Any

import pytest
import typer

from unetflow.errors import InputError, StageError
from unetflow.terminal import Common, TrainingDisplay, numbers, read_class_map, run_stage


def test_a_log_tells_where_training_goes_on_its_steps_and_its_held_out_scores(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "unetflow")
    with TrainingDisplay(quiet=False) as display:
        display({"event": "resumed", "step": 40})
        display({"event": "step", "step": 41, "steps": 50, "loss": 0.25})
        display({"event": "step", "step": 42, "steps": 50, "loss": 0.24})
        display({"event": "validation", "step": 50, "is_best": True, "loss": 0.5, "dice": 0.75})
        display({"event": "checkpoint", "step": 50})
    assert caplog.messages == [
        "going on after step 40",
        "step 41 of 50: loss 0.25",
        "step 50, held out: loss 0.5, dice 0.75",
    ], "one line a minute for steps, every validation, nothing else"


def test_quiet_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "unetflow")
    with TrainingDisplay(quiet=True) as display:
        display({"event": "step", "step": 1, "steps": 2, "loss": 0.5})
    assert caplog.messages == []


def test_lists_of_the_command_line_are_read_or_refused() -> None:
    assert numbers("64,64", int) == (64, 64)
    assert numbers(None, int) is None
    assert read_class_map("0=0,255=1") == {0: 0, 255: 1}
    with pytest.raises(InputError, match="64,64,64"):
        numbers("a,b", int)
    with pytest.raises(InputError, match="0=0,255=1"):
        read_class_map("0:0")


def test_an_error_without_words_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> dict[str, int]:
        raise TimeoutError

    with pytest.raises(typer.Exit) as ended:
        run_stage(Common(), work)
    assert ended.value.exit_code == 75
    assert capsys.readouterr().err.startswith("unetflow: TimeoutError (-v tells where)\n")


@pytest.mark.parametrize(
    ("error", "cause", "code"),
    [
        (OSError(errno.ETIMEDOUT, "gone"), None, 75),
        (StageError("could not write"), ConnectionResetError("gone"), 75),
        (OSError(errno.ENOSPC, "full"), None, 1),
        (StageError("could not write"), None, 1),
    ],
    ids=repr,
)
def test_a_store_that_may_come_back_is_told_apart_from_one_that_must_be_mended(
    capsys: pytest.CaptureFixture[str], error: Exception, cause: Exception | None, code: int
) -> None:
    def work(conditions: Any) -> dict[str, Any]:
        raise error from cause

    with pytest.raises(typer.Exit) as end:
        run_stage(Common(), work, needs_cluster=False)
    assert end.value.exit_code == code
    assert ("give the same command again" in capsys.readouterr().err) == (code == 75)
