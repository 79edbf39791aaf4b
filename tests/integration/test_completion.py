"""Completion of commands and options in bash."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("unetflow")


def printed_script() -> str:
    """What `--show-completion` prints in a bash."""
    environment = {**os.environ, "_UNETFLOW_COMPLETE": "source_bash"}
    return subprocess.run([COMMAND], env=environment, capture_output=True, text=True, check=True, timeout=60).stdout


def test_the_script_is_printed_and_bash_completes_by_it(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash on this machine")
    (tmp_path / "completion.sh").write_text(printed_script())
    ask = (
        'source completion.sh; complete -p unetflow | grep -q _unetflow_completion || exit 9; '
        'for word in seg "report --ur"; do COMP_WORDS=(unetflow $word); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); '
        '_unetflow_completion unetflow; echo "${COMPREPLY[@]}"; done'
    )
    environment = {**os.environ, "PATH": f"{COMMAND.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [bash, "--norc", "-c", ask], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["segment", "--url"]
