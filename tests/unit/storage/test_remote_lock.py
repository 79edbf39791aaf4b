"""The lock behind a URL: one holder, the dead give way at once, strangers after a minute."""

from __future__ import annotations

import json
import threading
import time
import uuid
from dataclasses import replace

import pytest

from unetflow.storage import lock as module
from unetflow.storage import remote_lock
from unetflow.storage.holder import Holder, LockedError
from unetflow.storage.lock import acquire_lock
from unetflow.storage.objects import Objects
from unetflow.storage.remote_lock import GUARD_NAME, NAME


@pytest.fixture
def url() -> str:
    return f"memory://{uuid.uuid4().hex}/out.zarr/.unetflow"


@pytest.fixture(params=["exclusive", "careless"], autouse=True)
def creation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a store refuse to create what is there, or write all the same and say nothing."""
    monkeypatch.setattr(remote_lock, "SETTLE_SECONDS", 0.2)
    one_at_a_time = threading.Lock()  # a store of this process's memory looks and writes in two steps

    def create(self: Objects, name: str, content: bytes) -> bool:
        with one_at_a_time:
            is_free = request.param == "careless" or self.get(name) is None
            if is_free:
                self.put(name, content)
            return is_free

    monkeypatch.setattr(Objects, "create", create)


def leave(url: str, holder: Holder, name: str = NAME) -> None:
    """Leave the lock of another process behind."""
    Objects(url).put(name, json.dumps({"holder": holder.to_json(), "attempt": "1"}).encode())


def dead() -> Holder:
    return replace(Holder.this_process(), started="12345")


def stranger() -> Holder:
    return replace(Holder.this_process(), host="another")


def pass_seconds(monkeypatch: pytest.MonkeyPatch, name: str, seconds: float) -> None:
    """Let an object have been written some time ago."""
    modified = Objects.modified

    def earlier(self: Objects, asked: str) -> float | None:
        found = modified(self, asked)
        return found - seconds if asked == name and found is not None else found

    monkeypatch.setattr(Objects, "modified", earlier)


def test_a_held_lock_names_its_holder_and_is_gone_afterwards(url: str) -> None:
    me = Holder.this_process()
    with acquire_lock(url) as lock:
        with (
            pytest.raises(LockedError, match=rf"{url}.*process {me.pid} on host {me.host}.* [0-9]+ s ago"),
            acquire_lock(url),
        ):
            pass
        assert not lock.is_lost
    assert Objects(url).names() == []
    with acquire_lock(url):
        pass


def test_the_lock_of_a_dead_process_of_this_host_is_taken_over_at_once(url: str) -> None:
    leave(url, dead())
    with acquire_lock(url):
        assert Objects(url).names() == [NAME], "the guard is left"
    assert Objects(url).names() == []


def test_the_lock_of_another_host_is_taken_over_after_a_minute(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(url, stranger())
    with monkeypatch.context() as patch:
        pass_seconds(patch, NAME, 50)
        with pytest.raises(LockedError, match="another, last heard of 50 s ago"), acquire_lock(url):
            pass
    pass_seconds(monkeypatch, NAME, 61)
    with acquire_lock(url):
        pass


def test_who_died_while_it_took_a_lock_over_stops_nobody(url: str) -> None:
    leave(url, dead())
    leave(url, dead(), GUARD_NAME)
    with acquire_lock(url):
        pass


def test_a_living_one_that_takes_a_lock_over_is_left_alone(url: str) -> None:
    leave(url, dead())
    leave(url, stranger(), GUARD_NAME)
    with pytest.raises(LockedError, match="another"), acquire_lock(url):
        pass
    assert Objects(url).names() == [NAME, GUARD_NAME]


def test_the_heartbeat_keeps_the_lock_fresh_and_notices_its_loss(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.005)
    there, until = Objects(url), time.monotonic() + 10
    with acquire_lock(url) as lock:
        first = there.modified(NAME)
        while there.modified(NAME) == first and time.monotonic() < until:
            time.sleep(0.002)
        assert there.modified(NAME) != first
        leave(url, stranger())
        while not lock.is_lost and time.monotonic() < until:
            leave(url, stranger())  # a beat in between may have written over it
            time.sleep(0.02)
        assert lock.is_lost
    assert b"another" in (there.get(NAME) or b"")


def test_who_comes_late_to_a_stale_lock_finds_that_another_took_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(url, dead())
    create = Objects.create

    def be_late(self: Objects, name: str, content: bytes) -> bool:
        if name == GUARD_NAME:
            leave(url, stranger())
        return create(self, name, content)

    monkeypatch.setattr(Objects, "create", be_late)
    with pytest.raises(LockedError), acquire_lock(url):
        pass
    assert b"another" in (Objects(url).get(NAME) or b"")
    assert Objects(url).names() == [NAME]


@pytest.mark.parametrize("is_stale", [False, True])
def test_of_many_that_come_at_once_one_gets_it(url: str, is_stale: bool) -> None:
    if is_stale:
        leave(url, dead())
    start, won = threading.Barrier(6, timeout=30), []

    def take(number: int) -> None:
        start.wait()
        try:
            with acquire_lock(url):
                won.append(number)
                start.wait()  # hold it until everyone has tried
        except LockedError:
            start.wait()

    threads = [threading.Thread(target=take, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
