"""What must hold after any fault: the bytes of an undisturbed run, a whole ledger, nothing left behind."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

_TEMPORARY = re.compile(r".*\.partial|.*\.tmp|.*\.new")
_TIMES = {"seconds"}  # the one column of metrics.csv that no two runs share


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file of a result but the record of what the run did; metrics without their times."""
    found = {}
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_file() and not {".unetflow", "logs", "checkpoints"} & set(inside.parts):
            found[str(inside)] = _without_times(path) if path.name == "metrics.csv" else path.read_bytes()
    return found


def leftovers(folder: Path) -> list[str]:
    """Return temporary files and held locks below a folder, records included."""
    return [str(p) for p in folder.rglob("*") if _TEMPORARY.fullmatch(p.name) or p.name == "lock"]


def records(folder: Path, stage: str) -> list[dict[str, Any]]:
    """Return the whole lines of a ledger; the last may be torn."""
    path = folder / ".unetflow" / stage / "ledger"
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line[9:]) for line in lines if line.endswith(b"\n")]


def done(folder: Path, stage: str) -> set[tuple[str, int]]:
    """Return pass and number of the blocks that a ledger holds as done."""
    return {(r["pass"], r["done"]) for r in records(folder, stage) if "done" in r}


def _without_times(path: Path) -> bytes:
    with path.open(newline="") as file:
        rows = [{k: v for k, v in row.items() if k not in _TIMES} for row in csv.DictReader(file)]
    return json.dumps(rows).encode()
