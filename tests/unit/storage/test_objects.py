"""Small objects behind a URL, and a store that does not answer for a while."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from unetflow.storage import objects
from unetflow.storage.objects import Objects


class Away:
    """Lets the requests of a store fail, as many as it has errors."""

    def __init__(self, store: Objects, *errors: Exception) -> None:
        self.errors, self._pipe = list(errors), store._fs._pipe_file
        store._fs._pipe_file = self

    async def __call__(self, *args: Any, **options: Any) -> None:
        if self.errors:
            raise self.errors.pop()
        await self._pipe(*args, **options)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Objects:
    monkeypatch.setattr(objects, "FIRST_WAIT", 0.01)
    made = Objects(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(made._fs, "_pipe_file", made._fs._pipe_file)  # which is put back then
    return made


def test_a_request_to_a_store_that_is_away_is_made_again(store: Objects) -> None:
    Away(store, ConnectionRefusedError("nobody listens"), TimeoutError("no answer"))
    store.put("a", b"content")
    assert store.get("a") == b"content"


def test_a_store_that_stays_away_and_one_that_refuses_are_told(store: Objects, monkeypatch: pytest.MonkeyPatch) -> None:
    away = Away(store, *[PermissionError("no")] * 9)
    with pytest.raises(PermissionError):
        store.put("a", b"content")
    assert len(away.errors) == 8
    monkeypatch.setattr(objects, "AWAY_SECONDS", 0.0)
    away.errors = [ConnectionRefusedError("nobody listens")] * 9
    with pytest.raises(ConnectionRefusedError):
        store.put("a", b"content")
    assert len(away.errors) == 8
