"""A ledger behind a URL: the same records, in few objects that are replaced whole."""

from __future__ import annotations

import threading
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unetflow.errors import InputError
from unetflow.storage import ledger as module
from unetflow.storage import remote_journal
from unetflow.storage.ledger import has_ledger, open_ledger
from unetflow.storage.objects import Objects

PRINT = {"model": "m"}


@pytest.fixture
def url() -> str:
    return new_url()


def new_url() -> str:
    return f"memory://{uuid.uuid4().hex}/out.zarr/.unetflow/segment"


def test_what_is_recorded_is_there_when_the_ledger_is_opened_again(url: str) -> None:
    assert not has_ledger(url)
    with open_ledger(url, PRINT) as ledger:
        ledger.record("predict", 3, {"n": 5})
        ledger.set_value("tile", (1, 2))
        ledger.flush()
        ledger.quarantine("predict", 4, {"error": "bad"})
        assert dict(ledger.reports("predict")) == {3: {"n": 5}}
    assert has_ledger(url)
    assert Objects(url).names() == ["ledger-000000"]
    with open_ledger(url, PRINT) as ledger:
        assert list(ledger.done("predict")) == [3]
        assert dict(ledger.reports("predict")) == {3: {"n": 5}}
        assert ledger.quarantined("predict") == {4: {"error": "bad"}}
        assert ledger.value("tile") == [1, 2]
    with pytest.raises(InputError, match=f"got in '{url}' model = "):
        open_ledger(url, {"model": "other"})


@settings(max_examples=12)
@given(st.lists(st.lists(st.integers(0, 400), max_size=8), max_size=8), st.integers(1, 400))
def test_objects_are_filled_one_after_the_other_and_full_ones_never_written_again(
    groups: list[list[int]], full: int
) -> None:
    url, seen = new_url(), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(remote_journal, "FULL_BYTES", full)
        patch.setattr(module, "COMMIT_SECONDS", 1000.0)
        for group in groups:
            with open_ledger(url, PRINT) as ledger:
                for number in group:
                    ledger.record("p", number, {"n": number})
            names = Objects(url).names()
            assert names == [f"ledger-{n:06d}" for n in range(len(names))]
            for name in names[:-1]:
                assert Objects(url).get(name) == seen.setdefault(name, Objects(url).get(name))
        wanted = {number for group in groups for number in group}
        with open_ledger(url, PRINT) as ledger:
            assert list(ledger.done("p")) == sorted(wanted)
            assert dict(ledger.reports("p")) == {n: {"n": n} for n in wanted}
        with open_ledger(url, PRINT, overwrite=True) as ledger:
            assert len(ledger.done("p")) == 0
        assert Objects(url).names() == ["ledger-000000"]
        assert not list(open_ledger(url, PRINT).done("p"))


def test_a_damaged_end_costs_its_record_and_spoils_no_other(url: str) -> None:
    with open_ledger(url, PRINT) as ledger:
        ledger.record("p", 1, {})
        ledger.record("p", 2, {})
    content = Objects(url).get("ledger-000000") or b""
    Objects(url).put("ledger-000000", content[:-5])
    with open_ledger(url, PRINT) as ledger:
        assert list(ledger.done("p")) == [1]
        assert [number for number, _ in ledger.reports("p")] == [1]
        ledger.record("p", 3, {})
    assert list(open_ledger(url, PRINT).done("p")) == [1, 3]


def test_a_store_that_is_away_for_a_while_loses_no_record(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = open_ledger(url, PRINT)
    ledger.record("p", 1, {})
    with monkeypatch.context() as away:

        def fail(self: Objects, name: str, content: bytes) -> None:
            raise OSError("no route")

        away.setattr(Objects, "put", fail)
        with pytest.raises(OSError, match="no route"):
            ledger.flush()
    ledger.record("p", 2, {})
    ledger.close()
    assert list(open_ledger(url, PRINT).done("p")) == [1, 2]


def test_a_group_is_one_request(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "COMMIT_SECONDS", 1000.0)
    ledger = open_ledger(url, PRINT)
    written: list[str] = []
    put, lock = Objects.put, threading.Lock()

    def count(self: Objects, name: str, content: bytes) -> None:
        with lock:
            written.append(name)
        put(self, name, content)

    monkeypatch.setattr(Objects, "put", count)
    for number in range(500):
        ledger.record("p", number, {})
    assert written == []
    ledger.close()
    assert written == ["ledger-000000"]
