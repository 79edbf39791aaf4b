"""The ledger: what is recorded survives any interruption, and holds for one fingerprint only."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
import threading
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from unetflow.errors import InputError
from unetflow.storage import journal
from unetflow.storage import ledger as module
from unetflow.storage.ledger import FILE_NAME, open_ledger

PRINT = {"model": "m", "tile": [64, 64], "inputs": {"raw": "abc", "labels": None}}


def test_what_is_recorded_is_there_when_the_ledger_is_opened_again(tmp_path: Path) -> None:
    with open_ledger(tmp_path / "new" / "folder", PRINT) as ledger:
        ledger.record("predict", 3, {"n": 5})
        ledger.quarantine("predict", 4, {"error": "bad"})
        ledger.set_value("tile", (1, 2))
        ledger.mark_pass_done("measure")
        assert ledger.value("tile") == [1, 2]
    with open_ledger(tmp_path / "new" / "folder", PRINT) as ledger:
        assert list(ledger.done("predict")) == [3]
        assert dict(ledger.reports("predict")) == {3: {"n": 5}}
        assert ledger.quarantined("predict") == {4: {"error": "bad"}}
        assert ledger.value("tile") == [1, 2]
        assert ledger.value("absent") is None
        assert ledger.pass_done("measure")
        assert not ledger.pass_done("predict")
        assert len(ledger.done("another")) == 0
        assert list(ledger.reports("another")) == []


def test_a_block_that_succeeds_leaves_quarantine(tmp_path: Path) -> None:
    with open_ledger(tmp_path, PRINT) as ledger:
        ledger.quarantine("p", 1, {})
        ledger.quarantine("p", 2, {})
        ledger.record("p", 1, {})
        assert list(ledger.quarantined("p")) == [2]
        ledger.forget_quarantine("p")
        assert ledger.quarantined("p") == {}
    assert open_ledger(tmp_path, PRINT).quarantined("p") == {}


def test_a_block_has_one_report_however_often_it_was_done(tmp_path: Path) -> None:
    with open_ledger(tmp_path, PRINT) as ledger:
        ledger.record("p", 1, {"n": 1})
        ledger.record("p", 1, {"n": 1})
        ledger.quarantine("p", 1, {})
        ledger.record("p", 1, {"n": 1})
        assert list(ledger.reports("p")) == [(1, {"n": 1})]
        assert ledger.quarantined("p") == {}


def test_another_fingerprint_is_refused_and_each_difference_is_named(tmp_path: Path) -> None:
    open_ledger(tmp_path, PRINT).close()
    other = {"model": "m", "tile": [64, 32], "inputs": {"raw": "xyz", "labels": None}, "mask": "k"}
    with pytest.raises(InputError) as caught:
        open_ledger(tmp_path, other)
    message = str(caught.value)
    assert "tile = [64, 64] where it is now [64, 32]" in message
    assert 'inputs.raw = "abc" where it is now "xyz"' in message
    assert 'mask = (absent) where it is now "k"' in message
    assert "model" not in message
    assert "--overwrite starts anew" in message
    with open_ledger(tmp_path, other, overwrite=True) as ledger:
        assert len(ledger.done("p")) == 0


def test_tuples_and_lists_are_the_same_fingerprint(tmp_path: Path) -> None:
    open_ledger(tmp_path, {"tile": (1, 2)}).close()
    open_ledger(tmp_path, {"tile": [1, 2]}).close()


@given(cut=st.integers(0, 10_000), n_blocks=st.integers(0, 6))
def test_a_ledger_cut_anywhere_opens_with_the_records_before_the_cut(cut: int, n_blocks: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sizes = []
        with open_ledger(folder, PRINT) as ledger:
            path = Path(folder, FILE_NAME)
            for number in range(n_blocks):
                ledger.record("p", number, {"n": number})
                ledger.flush()
                sizes.append(path.stat().st_size)
        cut = min(cut, path.stat().st_size)
        os.truncate(path, cut)
        with open_ledger(folder, PRINT) as ledger:
            assert list(ledger.done("p")) == [n for n, size in enumerate(sizes) if size <= cut]
            ledger.record("p", 99, {})
        with open_ledger(folder, PRINT) as ledger:
            assert 99 in ledger.done("p")


@pytest.mark.filterwarnings("default")
def test_a_flipped_bit_costs_one_record_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with open_ledger(tmp_path, PRINT) as ledger:
        for number in range(3):
            ledger.record("p", number, {"value": 1000})
    path = tmp_path / FILE_NAME
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2].replace(b"1000", b"1001")
    path.write_bytes(b"".join(lines))
    with open_ledger(tmp_path, PRINT) as ledger:
        assert list(ledger.done("p")) == [0, 2]
    assert "1 damaged records" in caplog.text
    path.write_bytes(b"".join([b"garbage\n", *lines[1:]]))
    with pytest.raises(InputError, match="must start with its fingerprint"):
        open_ledger(tmp_path, PRINT)


@given(st.binary(max_size=60))
def test_any_bytes_as_a_ledger_are_refused_or_start_anew(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, FILE_NAME).write_bytes(content)
        is_more_than_a_torn_line = b"\n" in content.rstrip(b"\n") or b"\r" in content.rstrip(b"\r\n")
        with contextlib.suppress(InputError) if is_more_than_a_torn_line else contextlib.nullcontext():
            open_ledger(folder, PRINT).close()


def test_a_full_disk_spoils_no_record_and_what_waits_is_written_once_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    ledger = open_ledger(tmp_path, PRINT)
    ledger.record("p", 1, {})
    size = (tmp_path / FILE_NAME).stat().st_size
    with monkeypatch.context() as full:
        full.setattr(journal.os, "write", lambda file, data: write(file, data[:10]))
        with pytest.raises(OSError, match="No space left") as caught:
            ledger.flush()
    assert caught.value.errno == errno.ENOSPC
    assert (tmp_path / FILE_NAME).stat().st_size == size
    ledger.record("p", 2, {})
    ledger.close()
    assert list(open_ledger(tmp_path, PRINT).done("p")) == [1, 2]


def test_the_error_of_a_stage_is_not_hidden_by_a_disk_that_is_full_at_the_end_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(KeyError), open_ledger(tmp_path, PRINT) as ledger:
        ledger.record("p", 1, {})
        monkeypatch.setattr(journal.os, "write", lambda file, data: 0)
        raise KeyError


def test_commits_are_grouped_but_never_more_than_a_second_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(journal.os, "fsync", synced.append)
    clock = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: clock[0])
    ledger = open_ledger(tmp_path, PRINT)
    synced.clear()
    for number in range(100):
        ledger.record("p", number, {})
        clock[0] += 0.09
    assert 8 <= len(synced) <= 9
    ledger.close()
    ledger.close()


def wait_for(condition: Callable[[], bool]) -> None:
    """Wait, for at most ten seconds, until something holds."""
    until = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


def test_a_record_does_not_wait_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0.01)
    ledger = open_ledger(tmp_path, PRINT)
    ledger._last_commit += 1000  # no record finds the second over
    for number in (7, 8):
        ledger.record("p", number, {})
        line = b'"done":%d' % number
        wait_for(lambda line=line: line in (tmp_path / FILE_NAME).read_bytes())  # type: ignore[misc]
        ledger._last_commit += 1000
    ledger.close()


def test_a_disk_that_comes_back_gets_what_waited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0.005)
    ledger = open_ledger(tmp_path, PRINT)
    ledger._last_commit += 1000
    tried = threading.Event()
    with monkeypatch.context() as full:
        full.setattr(journal.os, "write", lambda file, data: tried.set() or 0)
        ledger.record("p", 7, {})
        assert tried.wait(10)
    wait_for(lambda: b'"done":7' in (tmp_path / FILE_NAME).read_bytes())
    ledger.close()


def test_memory_does_not_grow_with_the_reports(tmp_path: Path) -> None:
    n_blocks, report = 5_000, {"histogram": "x" * 500}
    tracemalloc.start()
    with open_ledger(tmp_path, PRINT) as ledger:
        for number in range(n_blocks):
            ledger.record("p", number, report)
            if number % 1000 == 0:
                ledger.flush()
    tracemalloc.clear_traces()
    tracemalloc.reset_peak()
    with open_ledger(tmp_path, PRINT) as ledger:
        assert len(ledger.done("p")) == n_blocks
        assert sum(len(report["histogram"]) for _, report in ledger.reports("p")) == 500 * n_blocks
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


class LedgerAgainstDicts(RuleBasedStateMachine):
    """A ledger that is killed and opened again, against plain dictionaries."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(module, "COMMIT_SECONDS", 1000.0)  # only `flush` commits
        self.ledger = open_ledger(self.folder.name, PRINT)
        self.done: dict[int, Any] = {}
        self.failed: dict[int, Any] = {}
        self.flush()

    @rule(number=st.integers(0, 5), report=st.dictionaries(st.text(max_size=3), st.integers(), max_size=2))
    def record(self, number: int, report: dict[str, int]) -> None:
        self.ledger.record("p", number, report)
        self.done.setdefault(number, report)
        self.failed.pop(number, None)

    @rule(number=st.integers(0, 5))
    def quarantine(self, number: int) -> None:
        self.ledger.quarantine("p", number, {"error": "e"})
        self.failed[number] = {"error": "e"}

    @rule()
    def forget(self) -> None:
        self.ledger.forget_quarantine("p")
        self.failed.clear()

    @rule()
    def flush(self) -> None:
        self.ledger.flush()
        self.committed = dict(self.done), dict(self.failed)

    @rule()
    def replay(self) -> None:
        assert dict(self.ledger.reports("p")) == self.done
        self.committed = dict(self.done), dict(self.failed)

    @rule(torn=st.binary(max_size=9).filter(lambda b: b"\n" not in b))
    def crash_and_go_on(self, torn: bytes) -> None:
        self.ledger._waiting.clear()  # what a killed process takes with it
        self.ledger.close()
        with open(Path(self.folder.name, FILE_NAME), "ab") as file:
            file.write(torn)
        self.ledger = open_ledger(self.folder.name, PRINT)
        self.done, self.failed = dict(self.committed[0]), dict(self.committed[1])

    @invariant()
    def they_agree(self) -> None:
        if hasattr(self, "ledger"):
            assert list(self.ledger.done("p")) == sorted(self.done)
            assert self.ledger.quarantined("p") == self.failed

    def teardown(self) -> None:
        if hasattr(self, "ledger"):
            self.ledger.close()
            self.folder.cleanup()
            self.patch.undo()


test_a_ledger_agrees_with_plain_dictionaries_through_crashes = LedgerAgainstDicts.TestCase
LedgerAgainstDicts.TestCase.settings = settings(max_examples=15, stateful_step_count=12)
