"""Two network namespaces as two hosts with a network `ib0` between them: TLS, keys in a shared folder, no stranger."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
SUBMIT = """#!/bin/sh
cp "$1" "{folder}/script"
setsid ip netns exec {host} sh "{folder}/script" > "{folder}/out" 2>&1 < /dev/null &
echo $! > "{folder}/job"
echo "Submitted batch job $!"
"""
CANCEL = '#!/bin/sh\nkill -TERM -- "-$1" 2> /dev/null || true\n'


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def hosts() -> Iterator[tuple[str, str]]:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        pytest.skip("only root, with iproute2, can make network namespaces")
    names = tuple(f"unetflow-{os.getpid()}-{k}" for k in (1, 2))
    try:
        for name in names:
            ip("netns", "add", name)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"this machine makes no network namespaces: {error.stderr}")
    try:
        ip("link", "add", "ib0", "netns", names[0], "type", "veth", "peer", "name", "ib0", "netns", names[1])
        for name, address in zip(names, ("10.77.0.1/24", "10.77.0.2/24"), strict=True):
            ip("-n", name, "addr", "add", address, "dev", "ib0")
            ip("-n", name, "link", "set", "ib0", "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield names[0], names[1]
    finally:
        for name in names:
            ip("netns", "del", name)


def test_a_worker_on_another_host_speaks_tls_and_whoever_has_no_key_is_refused(
    tmp_path: Path, hosts: tuple[str, str]
) -> None:
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for name, text in (("sbatch", SUBMIT.format(folder=tmp_path, host=hosts[1])), ("scancel", CANCEL)):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755)
    env = {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}",
    }
    there = ["ip", "netns", "exec", hosts[1]]
    driver = ["ip", "netns", "exec", hosts[0], sys.executable, str(HERE / "drive_two_hosts.py"), str(tmp_path), *there]
    done = subprocess.run(driver, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["scheduler"].startswith("tls://10.77.0.1:")
    assert [address.partition("10.77.0.2:")[0] for address in found["workers"]] == ["tls://"]
    assert found["done"] == list(range(9))
    assert all(answer.startswith("refused") for answer in found["knocks"].values()), found["knocks"]
    assert found["left"] == 1
