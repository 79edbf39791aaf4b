"""Blocks that hang, eat memory, or meet a store that is away; worker processes import them."""

from __future__ import annotations

import os
import signal
import threading
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unetflow.geometry import Block


@dataclass(frozen=True)
class Faulty:
    """Meets its fault at one block; ``folder`` holds one file a start. Done gently, memory faults are none."""

    folder: str
    fault: str
    number: int = 3
    is_gentle: bool = False

    def gently(self) -> Faulty:
        return replace(self, is_gentle=True)

    def inspect(self, block: Block) -> dict[str, Any]:
        return {"min": 0, "max": 7, "nan": 2}

    def __call__(self, block: Block) -> dict[str, Any]:
        Path(self.folder, f"started-{block.number}-{uuid.uuid4().hex}").touch()
        if self.fault == "away" and Path(self.folder, "away").exists():
            raise ConnectionRefusedError("nobody listens")
        if self.fault == "all stale" and Path(self.folder, "away").exists():
            raise OSError(116, "Stale file handle", "/data/x")
        if block.number == self.number:
            self.meet()
        return {"pid": os.getpid(), "gentle": self.is_gentle}

    def meet(self) -> None:
        if self.fault == "hang":
            threading.Event().wait()
        elif self.fault == "hang once" and not Path(self.folder, "hung").exists():
            Path(self.folder, "hung").touch()
            threading.Event().wait()
        elif self.fault == "memory" and not self.is_gentle:
            os.kill(os.getpid(), signal.SIGKILL)  # as the kernel, or the nanny, does
        elif self.fault == "no memory" and not self.is_gentle:
            raise MemoryError("no room")
        elif self.fault == "always dies":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.fault == "raise":
            raise ValueError("poison")
        elif self.fault == "stale":
            raise OSError(116, "Stale file handle", "/data/x")


def count(folder: str | Path, number: int | str = "*") -> int:
    """Count the starts of a block."""
    return sum(1 for _ in Path(folder).glob(f"started-{number}-*"))


def leak(megabytes: int) -> None:
    """Keep memory that is not Dask's own, as a library that leaks does."""
    import faulty_blocks

    faulty_blocks.KEPT.append(bytearray(os.urandom(1024)) * (1024 * megabytes))  # type: ignore[attr-defined]


KEPT: list[bytearray] = []
