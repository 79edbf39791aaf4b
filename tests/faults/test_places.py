"""Disks that are full or read-only, stores that go away, folders that two commands want: the same command goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import oracle
import psutil
import pytest
from forks import AWAY, SERVER, Forks
from watch import keep

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
SEGMENT = ("segment", "raw.zarr", "-m", "run", "--cluster", "none")
TO_BUCKET = (*SEGMENT, "--outputs", "probabilities,classes")  # the server takes its time for each object


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mount, or mount anew, a small file system of its own."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        words = ["mount", "-t", "tmpfs", "-o", ("remount," if mounted else "") + options, "tmpfs", str(place)]
        if subprocess.run(words, capture_output=True).returncode:
            pytest.skip("file systems cannot be mounted here")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", str(place)], check=True)


@needs_root
def test_a_full_disk_stops_the_run_without_half_a_chunk_and_with_room_it_goes_on(
    place: Path, forks: Forks, disk: Callable[[str], Path]
) -> None:
    out = disk("size=600k") / "out.zarr"
    ended = forks.run(*SEGMENT, "-o", out, folder=place)
    assert ended.code == 1, ended
    assert "No space left on device" in ended.told and str(out) in ended.told and "bytes are free" in ended.told
    assert "Traceback" not in ended.told
    assert oracle.leftovers(out) == []
    wanted = oracle.tree(place / "raw.unetflow.zarr")
    found = oracle.tree(out)
    assert [name for name in found if "/c/" in name and found[name] != wanted[name]] == []
    disk("size=60m")
    ended = forks.run(*SEGMENT, "-o", out, "--json", "-q", folder=place)
    assert ended.code == 0, ended
    assert json.loads(ended.told.splitlines()[-1])["blocks_skipped"] > 0
    assert oracle.tree(out) == wanted
    assert oracle.leftovers(out) == []


@needs_root
def test_a_full_disk_while_training_leaves_the_checkpoint_before(
    place: Path, forks: Forks, disk: Callable[[str], Path]
) -> None:
    run = disk("size=60m") / "run"
    shutil.copytree(place / "run" / "dataset.zarr", run / "dataset.zarr")
    first = forks.run("train", "--run", run, "--set", "train.steps=3", "--cluster", "none", folder=place)
    assert first.code == 0, first
    used = sum(p.stat().st_blocks * 512 for p in run.rglob("*"))
    with open(run.parent / "filler", "wb") as filler:
        filler.write(bytes(60 * 2**20 - used - 2**16))
    ended = forks.run("train", "--run", run, "--cluster", "none", folder=place)
    assert ended.code == 1, ended
    assert "Traceback" not in ended.told
    (run.parent / "filler").unlink()
    ended = forks.run("train", "--run", run, "--cluster", "none", folder=place)
    assert ended.code == 0, ended
    assert (run / "model.safetensors").read_bytes() == (place / "run" / "model.safetensors").read_bytes()
    assert oracle.leftovers(run) == []


@needs_root
def test_a_place_that_may_not_be_written_is_refused_at_once(
    place: Path, forks: Forks, disk: Callable[[str], Path]
) -> None:
    folder = disk("size=1m,rw")
    disk("ro")
    ended = forks.run(*SEGMENT, "-o", folder / "out.zarr", folder=place)
    assert ended.code == 2, ended
    assert "Read-only file system" in ended.told and "Traceback" not in ended.told


@needs_root
def test_a_permission_lost_on_the_way_stops_cleanly_and_the_same_command_goes_on(
    place: Path, forks: Forks, disk: Callable[[str], Path]
) -> None:
    out = disk("size=60m,rw") / "out.zarr"
    ended = forks.run(*SEGMENT, "-o", out, folder=place, UNETFLOW_FAILPOINT="after-record:12")
    assert ended.code == -9
    disk("ro")
    ended = forks.run(*SEGMENT, "-o", out, folder=place)
    assert ended.code in (1, 2) and "Traceback" not in ended.told, ended
    disk("rw")
    assert forks.run(*SEGMENT, "-o", out, folder=place).code == 0
    assert oracle.tree(out) == oracle.tree(place / "raw.unetflow.zarr")


RACE = """
import sys, time
from pathlib import Path
from unetflow.storage.lock import LockedError, acquire_lock
folder, me = Path(sys.argv[1]), sys.argv[2]
def meet(word):
    Path(folder, f"{word}-{me}").touch()
    until = time.monotonic() + 60
    while len(list(folder.glob(f"{word}-*"))) < 2 and time.monotonic() < until:
        time.sleep(0.001)
for number in range(20):
    meet(f"start{number}")
    try:
        with acquire_lock(folder / str(number)):
            print(number, flush=True)
            meet(f"tried{number}")  # the winner stays until the other has tried too
    except LockedError:
        meet(f"tried{number}")
"""


def test_of_two_runs_at_once_one_works_twenty_times_out_of_twenty(tmp_path: Path) -> None:
    environ = {**os.environ, "PYTHONPATH": str(SERVER.parents[2])}
    words = [sys.executable, "-c", RACE, str(tmp_path)]
    racers = [subprocess.Popen([*words, me], stdout=subprocess.PIPE, text=True, env=environ) for me in "ab"]
    won = [int(line) for racer in racers for line in racer.communicate(timeout=120)[0].split()]
    assert sorted(won) == list(range(20))
    assert list(tmp_path.rglob("*.tmp")) == []


def test_the_second_of_two_commands_is_told_who_works_and_takes_over_from_the_dead(
    place: Path, forks: Forks
) -> None:
    out = place / "held.zarr"
    first = forks.start(*SEGMENT, "-o", out, folder=place)
    lock = out / ".unetflow" / "lock"
    until = time.monotonic() + 60
    while not lock.exists():
        assert time.monotonic() < until
        time.sleep(0.005)
    os.kill(first, signal.SIGSTOP)
    other = subprocess.run(
        [sys.executable, "-m", "unetflow", *SEGMENT, "-o", str(out)], cwd=place, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(SERVER.parents[2])},
    )  # fmt: skip
    assert other.returncode == 2, other.stderr
    assert f"process {first} on host {socket.gethostname()}" in other.stderr and "last heard of" in other.stderr
    os.kill(first, signal.SIGKILL)
    assert forks.end().code == -9
    assert forks.run(*SEGMENT, "-o", out, folder=place).code == 0
    assert oracle.tree(out) == oracle.tree(place / "raw.unetflow.zarr")
    shutil.rmtree(out)


class Gate:
    """A port that leads to an S3 server, and can be shut: then nobody answers, as where a network is away."""

    def __init__(self) -> None:
        self.server_port, self.port = free_port(), free_port()
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(self.server_port)]
        self.server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.pairs: list[socket.socket] = []
        until = time.monotonic() + 60
        while True:
            try:
                self._ask("/moto-api/")
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)
        self._ask("/volumes", method="PUT")
        self.open()

    @property
    def environ(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
        }  # fmt: skip

    def count(self, prefix: str) -> int:
        return self._ask(f"/volumes?list-type=2&prefix={prefix}").count(b"<Key>")

    def _ask(self, path: str, method: str = "GET") -> bytes:
        request = urllib.request.Request(f"http://127.0.0.1:{self.server_port}{path}", method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return bytes(answer.read())

    def open(self) -> None:
        self.door = socket.create_server(("127.0.0.1", self.port))
        self.keeper = threading.Thread(target=self._keep, args=(self.door,))
        self.keeper.start()

    def shut(self) -> None:
        self.door.shutdown(socket.SHUT_RDWR)
        self.door.close()
        self.keeper.join()
        for end in self.pairs:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.pairs.clear()

    def _keep(self, door: socket.socket) -> None:
        with suppress(OSError):
            while True:
                here, _ = door.accept()
                there = socket.create_connection(("127.0.0.1", self.server_port))
                self.pairs += [here, there]
                for source, sink in ((here, there), (there, here)):
                    threading.Thread(target=pump, args=(source, sink), daemon=True).start()

    def close(self) -> None:
        self.server.kill()
        self.server.wait()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def gate() -> Iterator[Gate]:
    running = Gate()
    with keep():
        yield running
    with suppress(OSError):
        running.shut()
    running.close()


def shut_on_the_way(gate: Gate, name: str, place: Path, forks: Forks, seconds: str) -> None:
    """Start a command that writes to the store, and shut the gate when some chunks are there."""
    driver = forks.start(*TO_BUCKET, "-o", f"s3://volumes/{name}", folder=place, **gate.environ, **{AWAY: seconds})
    until = time.monotonic() + 120
    while not gate.count(f"{name}/0/c/"):
        assert time.monotonic() < until and psutil.pid_exists(driver)
    os.kill(driver, signal.SIGSTOP)  # a quick machine would be through before the gate is shut
    gate.shut()
    os.kill(driver, signal.SIGCONT)


def test_a_store_that_is_away_for_a_while_is_waited_for(place: Path, forks: Forks, gate: Gate) -> None:
    shut_on_the_way(gate, "back.zarr", place, forks, "60")
    time.sleep(3)
    gate.open()
    ended = forks.end()
    assert ended.code == 0, ended
    assert "is away" in ended.told
    chunks = (place / "raw.unetflow.zarr" / "0" / "c").rglob("*")
    assert gate.count("back.zarr/0/c/") == sum(path.is_file() for path in chunks)


def test_a_store_that_stays_away_ends_with_75_and_the_same_command_goes_on(
    place: Path, forks: Forks, gate: Gate
) -> None:
    shut_on_the_way(gate, "away.zarr", place, forks, "2")
    ended = forks.end()
    gate.open()
    assert ended.code == 75, ended
    assert "Traceback" not in ended.told and "unetflow segment raw.zarr" in ended.told
    again = forks.run(*TO_BUCKET, "-o", "s3://volumes/away.zarr", "--json", "-q", folder=place, **gate.environ)
    assert again.code == 0, again
    assert json.loads(again.told.splitlines()[-1])["blocks_skipped"] > 0
