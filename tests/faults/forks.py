"""A process that has everything imported and forks a child for each command: kills in milliseconds, not seconds.

It reads one JSON line a command, ``{"words": [...], "folder": ..., "environ": {...}, "told": FILE}``, runs
``unetflow words...`` in a child of its own session, and answers with the child's number, then its exit code
(negative for a signal), a line each.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Self

SERVER = Path(__file__)
HANGS_AFTER = 150  # seconds; the longest command of these tests takes a tenth of it
AWAY = "TEST_AWAY_SECONDS"  # in the environment of a command: how long it waits for a store
HEAVY = (
    "torch", "torch._dynamo", "zarr", "scipy.ndimage", "cc3d", "numba", "matplotlib.pyplot", "skimage.measure",
    "unetflow.nn.loop", "unetflow.nn.predict", "unetflow.numerics.weights", "unetflow.numerics.displace",
    "unetflow.numerics.elastic", "unetflow.storage.volume", "unetflow.storage.ngff", "unetflow.numerics.labelling",
    "unetflow.numerics.intensity", "unetflow.stages.previews",
)  # fmt: skip


class Ended:
    """How a command ended: its exit code and what it told on stderr and stdout."""

    def __init__(self, code: int, told: str) -> None:
        self.code, self.told = code, told

    def __repr__(self) -> str:
        return f"exit {self.code}:\n{self.told}"


class Forks:
    """The test's side."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(SERVER.parents[2])},
        )  # fmt: skip

    @property
    def pid(self) -> int:
        """Number of the process that forks."""
        return self._process.pid

    def run(self, *words: object, folder: Path, **environ: str) -> Ended:
        """Run a command to its end."""
        self.start(*words, folder=folder, **environ)
        return self.end()

    def start(self, *words: object, folder: Path, **environ: str) -> int:
        """Start a command and return its process number; `end` waits for it."""
        self._told = folder / "told.txt"
        wish = {"words": [str(w) for w in words], "folder": str(folder), "environ": environ, "told": str(self._told)}
        print(json.dumps(wish), file=self._process.stdin, flush=True)
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def end(self) -> Ended:
        assert self._process.stdout is not None
        code = int(self._process.stdout.readline())
        told = self._told.read_text()
        self._told.unlink()
        if "Timeout (" in told:
            print(told)  # whole: what it hung in
        return Ended(code, told)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=60)


def _serve() -> None:
    import unetflow.runtime.ranks
    import unetflow.stages.convert
    import unetflow.stages.prepare
    import unetflow.stages.segment
    import unetflow.stages.train  # noqa: F401

    for heavy in HEAVY:
        __import__(heavy)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(_run(json.loads(line)))
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _run(wish: dict[str, Any]) -> int:
    from unetflow import failpoints
    from unetflow.cli import app
    from unetflow.runtime.blockwise import run_pass
    from unetflow.storage import ledger, objects

    os.setsid()
    os.chdir(wish["folder"])
    os.environ.update(wish["environ"])
    told = os.open(wish["told"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for number in (1, 2):
        os.dup2(told, number)
    faulthandler.dump_traceback_later(HANGS_AFTER, exit=True)  # what it hung in is then in what it told
    failpoints.arm(os.environ.get(failpoints.VARIABLE, ""))
    ledger.COMMIT_SECONDS = 0.0  # else a run of a second is one group of records, and a kill loses it whole
    if AWAY in os.environ:
        objects.AWAY_SECONDS = run_pass.__kwdefaults__["away_patience"] = float(os.environ[AWAY])
    sys.argv = ["unetflow", *wish["words"]]
    try:
        app(wish["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        return code
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    _serve()
