"""Disks that are full or read-only, stores that go away, folders that two commands want: the same command goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import oracle
import pytest
from forks import SERVER, Forks

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a file system")
SEGMENT = ("segment", "raw.zarr", "-m", "run", "--cluster", "none")


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
sys.path.insert(0, sys.argv[1])
from unetflow.storage.lock import LockedError, acquire_lock
folder, until = sys.argv[2], float(sys.argv[3])
for number in range(20):
    time.sleep(max(0, until + 0.25 * number - time.time()))
    try:
        with acquire_lock(f"{folder}/{number}"):
            print(number, flush=True)
            time.sleep(0.12)
    except LockedError:
        pass
"""


def test_of_two_runs_at_once_one_works_twenty_times_out_of_twenty(tmp_path: Path) -> None:
    start = time.time() + 1.5
    words = [sys.executable, "-c", RACE, str(SERVER.parents[2]), str(tmp_path), str(start)]
    racers = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    won = [line for racer in racers for line in racer.communicate(timeout=60)[0].split()]
    # A slow machine may let one come so late that the other is through; never may both be in at once.
    assert set(won) == {str(n) for n in range(20)}
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


class Bucket:
    """An S3 server that can be stopped and started; what it holds lives as long as its process."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.environ = {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}", "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing", "AWS_DEFAULT_REGION": "us-east-1", "AWS_MAX_ATTEMPTS": "1",
        }  # fmt: skip
        command = [str(Path(sys.executable).with_name("moto_server")), "-H", "127.0.0.1", "-p", str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/moto-api/", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until
                time.sleep(0.05)
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/volumes", method="PUT")
        urllib.request.urlopen(request, timeout=30).close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def bucket() -> Iterator[Bucket]:
    running = Bucket()
    yield running
    running.kill()


def test_a_store_that_goes_away_on_the_way_ends_with_75(place: Path, forks: Forks, bucket: Bucket) -> None:
    from unetflow.failpoints import VARIABLE

    environ = {**bucket.environ, "UNETFLOW_AWAY_SECONDS": "3"}
    # The driver stops at a record, as at any other moment; then the server dies, and the driver goes on.
    driver = forks.start(*SEGMENT, "-o", "s3://volumes/out.zarr", folder=place, **environ)
    assert VARIABLE not in environ
    until = time.monotonic() + 60
    listing = f"http://127.0.0.1:{bucket.port}/volumes?list-type=2&prefix=out.zarr/0/c"
    while b"<Key>" not in urllib.request.urlopen(listing, timeout=30).read():
        assert time.monotonic() < until
    os.kill(driver, signal.SIGSTOP)
    bucket.kill()
    os.kill(driver, signal.SIGCONT)
    ended = forks.end()
    assert ended.code == 75, ended
    assert "Traceback" not in ended.told
    assert "unetflow segment raw.zarr" in ended.told
