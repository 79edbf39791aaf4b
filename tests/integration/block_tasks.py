"""Tasks that worker processes import: each leaves a marker file where it started and finished."""

from __future__ import annotations

import errno
import os
import signal
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unetflow.errors import InputError
from unetflow.geometry import Block


@dataclass(frozen=True)
class Marked:
    """Squares the block's number; ``folder`` holds one file for each start and each finish."""

    folder: str
    seconds: float = 0.0

    def __call__(self, block: Block) -> dict[str, Any]:
        Path(self.folder, f"started-{block.number}-{uuid.uuid4().hex}").touch()
        self.before(block)
        time.sleep(self.seconds)
        Path(self.folder, f"finished-{block.number}-{uuid.uuid4().hex}").touch()
        return {"square": block.number**2, "pid": os.getpid()}

    def before(self, block: Block) -> None:
        """Do nothing; kinds of faults override it."""


@dataclass(frozen=True)
class Faulty(Marked):
    """Fails at the blocks of ``numbers``, the first ``times`` times."""

    numbers: tuple[int, ...] = ()
    times: int = 1000
    fault: str = "raise"

    def before(self, block: Block) -> None:
        if block.number in self.numbers and count(self.folder, "started", block.number) <= self.times:
            FAULTS[self.fault]()


@dataclass(frozen=True)
class Gated(Marked):
    """Starts, and waits until the file ``go`` is there."""

    def before(self, block: Block) -> None:
        while not Path(self.folder, "go").exists():
            time.sleep(0.01)


@dataclass(frozen=True)
class Staged(Faulty):
    """The same in three steps; the fault is in ``step``. Reports when each step began and ended."""

    step: str = "compute"

    def load(self, block: Block) -> dict[str, Any]:
        Path(self.folder, f"started-{block.number}-{uuid.uuid4().hex}").touch()
        return {"load": self._spend("load", block)}

    def compute(self, block: Block, loaded: dict[str, Any]) -> dict[str, Any]:
        return {**loaded, "compute": self._spend("compute", block)}

    def store(self, block: Block, result: dict[str, Any]) -> dict[str, Any]:
        times = {**result, "store": self._spend("store", block)}
        Path(self.folder, f"finished-{block.number}-{uuid.uuid4().hex}").touch()
        return {"square": block.number**2, "pid": os.getpid(), "times": times}

    def __call__(self, block: Block) -> dict[str, Any]:
        return self.store(block, self.compute(block, self.load(block)))

    def _spend(self, step: str, block: Block) -> tuple[float, float]:
        began = time.monotonic()
        if step == self.step:
            self.before(block)
        time.sleep(self.seconds)
        return began, time.monotonic()


def _raise() -> None:
    class Local(Exception):  # cannot be pickled
        pass

    raise Local("poison")


def _full_disk() -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/tmp/x")


def _refuse() -> None:
    raise InputError("the rule, the value, the cure")


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_late() -> None:
    time.sleep(0.5)  # others wait on this worker by now
    _die()


def _exit() -> None:
    os._exit(3)


FAULTS: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "full disk": _full_disk,
    "refuse": _refuse,
    "die": _die,
    "die late": _die_late,
    "exit": _exit,
}


def count(folder: str | Path, kind: str, number: int | str = "*") -> int:
    """Count the marker files of a block."""
    return sum(1 for _ in Path(folder).glob(f"{kind}-{number}-*"))
