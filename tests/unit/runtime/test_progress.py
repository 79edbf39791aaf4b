"""What a pass tells."""

from __future__ import annotations

import io
import logging
import sys

import pytest

from unetflow.runtime.progress import Bar, LogLines, Progress, Silent, make_progress


def drive(progress: Progress) -> None:
    progress.start("segment/predict", 10, 4)
    progress.workers(2)
    progress.advance()
    progress.retry()
    progress.advance(5)
    progress.finish()


def test_a_bar_shows_blocks_rate_retries_and_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "160")
    drive(Bar())
    told = stream.getvalue()
    assert "segment/predict" in told
    assert "10/10" in told
    assert "1 retries, 2 workers" in told
    assert "/s" in told


def test_lines_come_at_intervals_and_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "unetflow"):
        drive(LogLines(interval=3600))
        assert len(caplog.messages) == 1
        drive(LogLines(interval=0))
    assert caplog.messages[0].startswith("segment/predict: 10 of 10 blocks")
    assert caplog.messages[1].startswith("segment/predict: 5 of 10 blocks")
    assert "left, 2 workers" in caplog.messages[1]


def test_the_way_of_telling_follows_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(make_progress(quiet=True)) is Silent
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(make_progress(), LogLines)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(make_progress(), Bar)
