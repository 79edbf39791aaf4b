"""Amounts of memory, as people write them."""

from __future__ import annotations

import re
from typing import Any

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}


def parse_bytes(text: Any) -> Any:
    """Turn ``"2 GB"`` or ``"512MiB"`` into bytes; numbers pass.

    Examples
    --------
    >>> parse_bytes("2 GB"), parse_bytes("1GiB"), parse_bytes(7)
    (2000000000, 1073741824, 7)
    """
    if not isinstance(text, str):
        return text
    match = re.fullmatch(r"\s*([0-9.]+)\s*([kmgt]i?)?b?\s*", text.lower())
    if match is None:
        raise ValueError("an amount of memory is a number with a unit, for instance '2 GB'")
    return int(float(match[1]) * _UNITS[match[2] or ""])


def format_bytes(amount: float) -> str:
    """Write bytes with a unit that a person reads.

    Examples
    --------
    >>> format_bytes(1536), format_bytes(2_500_000_000)
    ('1.5 kB', '2.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} TB"


def peak_memory() -> int:
    """Return the highest resident memory of this process so far, in bytes; 0 where the system does not tell.

    Not ``getrusage``, whose figure a process inherits from the one that started it.
    """
    try:
        with open("/proc/self/status", encoding="ascii") as lines:
            return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return 0
