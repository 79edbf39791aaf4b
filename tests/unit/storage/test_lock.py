"""The lock: one holder, the dead give way at once, strangers after a minute."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from unetflow.errors import InputError
from unetflow.storage import holder
from unetflow.storage import lock as module
from unetflow.storage.lock import FILE_NAME, Holder, LockedError, acquire_lock


def leave(folder: Path, holder: Holder, age: float = 0.0) -> Path:
    """Leave the lock of another process behind."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    path.write_text(json.dumps(asdict(holder)))
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_a_held_lock_names_its_holder_and_is_gone_afterwards(tmp_path: Path) -> None:
    me = Holder.this_process()
    with acquire_lock(tmp_path / "a" / "b") as lock:
        with (
            pytest.raises(LockedError, match=rf"process {me.pid} on host {me.host}.* [0-9]+ s ago"),
            acquire_lock(tmp_path / "a" / "b"),
        ):
            pass
        assert not lock.is_lost
    assert not (tmp_path / "a" / "b" / FILE_NAME).exists()
    with acquire_lock(tmp_path / "a" / "b"):
        pass


def test_a_lock_is_released_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), acquire_lock(tmp_path):
        raise RuntimeError
    assert not (tmp_path / FILE_NAME).exists()


def test_the_lock_of_a_dead_process_of_this_host_is_taken_over_at_once(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    dead = replace(Holder.this_process(), pid=child.pid, started=holder._started(child.pid))
    leave(tmp_path, dead)
    with pytest.raises(LockedError), acquire_lock(tmp_path):
        pass
    child.kill()
    while holder._started(child.pid) != "ended":
        time.sleep(0.001)
    with acquire_lock(tmp_path):  # not yet waited for: a zombie is dead too
        pass
    child.communicate()
    leave(tmp_path, dead)
    with acquire_lock(tmp_path):
        pass


def test_a_later_process_of_the_same_number_does_not_hold_the_lock(tmp_path: Path) -> None:
    leave(tmp_path, replace(Holder.this_process(), started="12345"))
    with acquire_lock(tmp_path):
        pass


@pytest.mark.parametrize("change", [{"host": "another"}, {"space": "another boot or container"}])
def test_the_lock_of_another_host_is_taken_over_after_a_minute(
    tmp_path: Path, change: dict[str, str]
) -> None:
    stranger = replace(Holder.this_process(), pid=2**22 + 1, **change)
    leave(tmp_path, stranger, age=50)
    with pytest.raises(LockedError, match="50 s ago"), acquire_lock(tmp_path):
        pass
    leave(tmp_path, stranger, age=61)
    with acquire_lock(tmp_path):
        pass


def test_an_unreadable_lock_is_left_alone_for_a_minute(tmp_path: Path) -> None:
    path = leave(tmp_path, Holder.this_process())
    path.write_text("")
    with pytest.raises(LockedError, match="just started"), acquire_lock(tmp_path):
        pass
    os.utime(path, (0, 0))
    with acquire_lock(tmp_path):
        pass


def test_the_heartbeat_keeps_the_lock_fresh_and_notices_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT_SECONDS", 0.005)
    with acquire_lock(tmp_path) as lock:
        path = tmp_path / FILE_NAME
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 5
        while path.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.001)
        assert path.stat().st_mtime > 0
        thief = replace(Holder.this_process(), host="thief")
        path.write_text(json.dumps(asdict(thief)))
        while not lock.is_lost and time.monotonic() < deadline:
            time.sleep(0.001)
        assert lock.is_lost
    assert module._read(path) == thief


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(InputError, match="folder that it may write to"),
        acquire_lock(tmp_path / "file" / "x"),
    ):
        pass


def _try(folder: Path, start: threading.Barrier, won: list[int], number: int) -> None:
    start.wait()
    try:
        with acquire_lock(folder):
            won.append(number)
            start.wait()  # hold it until everyone has tried
    except LockedError:
        start.wait()


def test_of_many_that_find_a_stale_lock_one_gets_it(tmp_path: Path) -> None:
    for turn in range(5):
        folder = tmp_path / str(turn)
        leave(folder, replace(Holder.this_process(), started="1"))
        start, won = threading.Barrier(8, timeout=30), []
        threads = [threading.Thread(target=_try, args=(folder, start, won, n)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_nobody_looks_at_a_stale_lock_while_another_takes_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(tmp_path, replace(Holder.this_process(), started="1"))
    won: list[str] = []
    over = threading.Event()

    def come_second() -> None:
        with suppress(LockedError), acquire_lock(tmp_path):
            won.append("second")
            over.wait()

    second = threading.Thread(target=come_second)
    is_stale = module.is_stale

    def let_the_second_try(found: Holder | None, age: float) -> bool:
        if second.ident is None:
            second.start()
            second.join(0.5)  # time enough to be through, if nothing holds it
        return is_stale(found, age)

    monkeypatch.setattr(module, "is_stale", let_the_second_try)
    with suppress(LockedError), acquire_lock(tmp_path):
        won.append("first")
        over.set()
        second.join()
    over.set()
    second.join()
    assert won == ["first"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_lock_that_came_into_being_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool
) -> None:
    """Where a file system knows no flock, another may come between the look and the making."""
    other = replace(Holder.this_process(), host="another")

    def come_between(name: str) -> None:
        if name == "half-lock":
            leave(tmp_path, other)

    def no_link(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    monkeypatch.setattr(module, "fail_point", come_between)
    if not has_links:
        monkeypatch.setattr(os, "link", no_link)
    with pytest.raises(LockedError, match="on host another"), acquire_lock(tmp_path):
        pass
    assert module._read(tmp_path / FILE_NAME) == other


def test_a_lock_does_not_outlive_its_killed_holder(tmp_path: Path) -> None:
    code = f"""
from unetflow.storage.lock import acquire_lock
with acquire_lock({str(tmp_path)!r}):
    print("held", flush=True)
    input()
"""
    root = Path(module.__file__).parents[2]
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(LockedError, match=f"process {child.pid}"), acquire_lock(tmp_path):
            pass
        child.kill()
    with acquire_lock(tmp_path):
        pass
