"""Outputs in a bucket: a real S3 server on loopback, reached by driver and workers as any other is.

Nothing but the environment tells where the server is: ``AWS_ENDPOINT_URL``, which botocore reads.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import project
import pytest
import zarr
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.errors import InputError, Interrupted
from unetflow.stages.convert import convert
from unetflow.stages.neuroglancer import links
from unetflow.stages.request import read_record
from unetflow.stages.segment import segment
from unetflow.stages.work import Conditions
from unetflow.storage.lock import acquire_lock
from unetflow.storage.objects import Objects

BUCKET = "s3://volumes"
RAW = f"{BUCKET}/raw.zarr"
SHAPE = (1, 70, 300)  # long enough for a pyramid; the server takes its time for each object
SMALL_BLOCKS = {"shard": [1, 64, 128], "chunk": [1, 32, 64]}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """Address of an S3 server with an empty bucket."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)]
    patch = pytest.MonkeyPatch()
    patch.setenv("AWS_ENDPOINT_URL", address)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        patch.setenv(name, "testing")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_CA_BUNDLE"):
        patch.delenv(name, raising=False)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(address, process)
            files().mkdir("volumes")
            yield address
        finally:
            process.kill()
            patch.undo()


def _wait_for(address: str, process: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=5).close()
            return
        except OSError:
            assert process.poll() is None and time.monotonic() < until, "the S3 server does not answer"
            time.sleep(0.05)


def files() -> Any:
    """Return a file system that asks the server each time."""
    return fsspec.filesystem("s3", use_listings_cache=False)


def objects(url: str) -> dict[str, bytes]:
    """Return every object of a result but the record of what the run did, as `project.tree` does."""
    bucket = files()
    root = url.removeprefix("s3://") + "/"
    paths = [path for path in sorted(bucket.find(root)) if not path.startswith(f"{root}.unetflow/")]
    return {path.removeprefix(root): bucket.cat_file(path) for path in paths}


@pytest.fixture(scope="module")
def made(server: str, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with a longer volume beside the trained model, which lies in the bucket too."""
    folder = tmp_path_factory.mktemp("longer")
    project.make_volume(folder, SHAPE)
    (folder / "run").symlink_to(trained / "run")
    convert(str(folder / "raw.zarr"), RAW)
    assert (zarr.open_array(RAW + "/0")[:] == zarr.open_array(folder / "raw.zarr" / "0")[:]).all()
    return folder


@pytest.fixture(scope="module")
def expected(made: Path) -> dict[str, bytes]:
    """Every file of a local result."""
    segment(settings_in(made), RAW, out=str(made / "local.zarr"))
    return project.tree(made / "local.zarr")


def settings_in(made: Path, **segment: Any) -> Any:
    return project.settings_in(made, segment={**SMALL_BLOCKS, **segment})


@pytest.mark.parametrize("where", ["none", "two workers"])
def test_a_bucket_gets_the_bytes_of_a_local_folder(
    made: Path, expected: dict[str, bytes], where: str, request: pytest.FixtureRequest
) -> None:
    client = None if where == "none" else request.getfixturevalue("two_workers")
    out = f"{BUCKET}/{where.replace(' ', '-')}.zarr"
    first = segment(settings_in(made), RAW, client, out=out)
    assert first["objects"] > 0
    assert {"0/zarr.json", "1/zarr.json", "labels/instances/1/zarr.json"} <= expected.keys()
    assert objects(out) == expected
    assert not Objects(f"{out}/.unetflow/labelling").names(), "scratch data are left"
    assert Objects(f"{out}/.unetflow").get("lock") is None

    requests = len(objects(out))
    again = segment(settings_in(made), RAW, client, out=out)
    assert again["blocks_skipped"] == again["blocks"] == first["blocks"]
    assert (objects(out), len(objects(out))) == (expected, requests)

    record = read_record(out)
    assert record is not None
    layers = json.loads(unquote(links(record, out)[""].partition("#!")[2]))["layers"]
    assert [layer["source"] for layer in layers] == [
        f"{place}/|zarr:" for place in (RAW, out, f"{out}/labels/classes", f"{out}/labels/instances")
    ], "what neuroglancer would read"


def test_a_run_that_was_stopped_goes_on(made: Path, expected: dict[str, bytes]) -> None:
    out = f"{BUCKET}/stopped.zarr"
    asked = iter(range(100))
    with pytest.raises(Interrupted, match="goes on"):
        segment(settings_in(made), RAW, out=out, conditions=Conditions(should_stop=lambda: next(asked) > 8))
    result = segment(settings_in(made), RAW, out=out)
    assert 0 < result["blocks_skipped"] < result["blocks"]
    assert objects(out) == expected


def test_a_run_whose_driver_was_killed_goes_on_at_once(made: Path, expected: dict[str, bytes]) -> None:
    out = f"{BUCKET}/killed.zarr"
    code = f"""
import os, signal, time
from pathlib import Path
import project
from unetflow.stages.segment import segment
from unetflow.stages.work import Conditions
asked = iter(range(100))
def die() -> bool:
    if next(asked) == 9:
        time.sleep(2.5)  # a block that takes long: what was recorded before must not wait for it
        os.kill(os.getpid(), signal.SIGKILL)
    return False
settings = project.settings_in(Path({str(made)!r}), segment={SMALL_BLOCKS!r})
segment(settings, {RAW!r}, out={out!r}, conditions=Conditions(should_stop=die))
"""
    here = str(Path(__file__).parent)
    killed = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": here}, capture_output=True, timeout=120
    )
    assert killed.returncode == -9, killed.stderr.decode()
    assert Objects(f"{out}/.unetflow").get("lock") is not None
    result = segment(settings_in(made), RAW, out=out)
    assert 0 < result["blocks_skipped"] < result["blocks"]
    assert objects(out) == expected


def test_the_command_refuses_another_fingerprint_and_overwrites_when_told(
    made: Path, expected: dict[str, bytes]
) -> None:
    out = f"{BUCKET}/other.zarr"
    words = ["segment", RAW, "-m", str(made / "run"), "-o", out, "--cluster", "none", "--json"]
    wishes = [f"--set=segment.{name}={value}" for name, value in SMALL_BLOCKS.items()]
    wishes += ["--outputs=probabilities,classes,instances"]
    first = CliRunner().invoke(app, [*words, "--set=segment.threshold=0.7", "--set=segment.shard=[1,128,128]"])
    assert first.exit_code == 0, first.stderr
    before = objects(out)
    refused = CliRunner().invoke(app, [*words, *wishes])
    assert refused.exit_code == 2
    assert "threshold" in refused.stderr and "--overwrite" in refused.stderr
    assert objects(out) == before
    done = CliRunner().invoke(app, [*words, *wishes, "--overwrite"])
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["blocks_skipped"] == 0
    assert objects(out).keys() == expected.keys()


def test_a_held_output_and_a_foreign_one_are_refused_and_stay_as_they_are(made: Path) -> None:
    out = f"{BUCKET}/held.zarr"
    with acquire_lock(f"{out}/.unetflow"), pytest.raises(InputError, match="one run at a time"):
        segment(settings_in(made), RAW, out=out, overwrite=True)
    assert Objects(out).names() == []
    Objects(out).put("notes.txt", b"mine")
    with pytest.raises(InputError, match="must be new or an output"):
        segment(settings_in(made), RAW, out=out)
    with pytest.raises(InputError, match="with other files"):
        segment(settings_in(made), RAW, out=out, overwrite=True)
    assert Objects(out).get("notes.txt") == b"mine"
    with pytest.raises(InputError, match="bucket does not exist"):
        segment(settings_in(made), RAW, out="s3://absent/x.zarr")


def test_the_server_lets_one_of_many_create_an_object(server: str) -> None:
    there = Objects(f"{BUCKET}/race")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: there.create("lock", b"%d" % n), range(16)))
    assert won.count(True) == 1
    assert there.get("lock") == b"%d" % won.index(True)
