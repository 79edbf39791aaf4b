"""What every benchmark says in the end: a table on the screen, and a dated report beside the scripts.

    from report import write_report
    write_report("weights", [{"what": "1024^2", "ours": "80 ms", "theirs": "95 ms", "holds": "yes"}], "one thread")

A row is a dict of texts; the keys of the first are the columns, usually what, ours, theirs, ratio,
bar, holds. A report of the same day is replaced.
"""

from __future__ import annotations

import datetime
import os
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

REPORTS = Path(__file__).resolve().parent / "reports"
PACKAGES = ("numpy", "scipy", "numba", "torch", "zarr", "dask")


def write_report(name: str, rows: Sequence[Mapping[str, str]], note: str = "") -> Path:
    """Print the rows, write ``reports/<name>-YYYY-MM-DD.md``, and return its path."""
    today = datetime.date.today().isoformat()
    lines = table(rows)
    print("\n".join([*lines, "", note]))
    facts = [f"- {key}: {value}" for key, value in {"hardware": hardware(), "versions": versions()}.items()]
    REPORTS.mkdir(exist_ok=True)
    path = REPORTS / f"{name}-{today}.md"
    path.write_text("\n".join([f"# {name}, {today}", "", *lines, "", note, "", *facts, ""]), encoding="utf-8")
    return path


def table(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the rows as a Markdown table, padded so that it reads as plain text too."""
    columns = list(rows[0])
    cells = [columns, *([str(row.get(column, "")) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    cells.insert(1, ["-" * width for width in widths])
    return ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]


def hardware() -> str:
    """Name the processor, the cores that this process may use, and the GPU if there is one."""
    cores = f"{len(os.sched_getaffinity(0))} cores"
    return ", ".join([processor(), cores, *gpu()])


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def gpu() -> list[str]:
    try:
        import torch
    except ImportError:
        return []
    return [torch.cuda.get_device_name(0)] if torch.cuda.is_available() else ["no GPU"]


def versions() -> str:
    """Name Python, the package and what its speed rests on."""
    found = [f"python {platform.python_version()}"]
    for package in ("unetflow", *PACKAGES):
        try:
            found.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
