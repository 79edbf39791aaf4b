"""What a run's bytes depend on, compared with what an earlier start was given."""

from __future__ import annotations

import json
from typing import Any

from unetflow.errors import InputError

_ABSENT = "(absent)"

Json = dict[str, Any]


def require_same(found: Json, wanted: Json, place: str) -> None:
    """Refuse to go on at a place with another fingerprint.

    Raises
    ------
    InputError
        With each key that differs, nested ones with dots.

    Examples
    --------
    >>> require_same({"tile": {"y": 64}}, {"tile": {"y": 32}}, "out.zarr")
    Traceback (most recent call last):
    unetflow.errors.InputError: a run goes on only with what it was started with, got in 'out.zarr'
    tile.y = 64 where it is now 32; take the old values, or --overwrite starts anew
    """
    differences = _differences(found, wanted)
    if differences:
        raise InputError(
            f"a run goes on only with what it was started with, got in '{place}' "
            f"{'; '.join(differences)}; take the old values, or --overwrite starts anew"
        )


def _differences(old: Json, new: Json, above: str = "") -> list[str]:
    """Name each key whose value differs, nested keys with dots."""
    found = []
    for key in [*old, *(k for k in new if k not in old)]:
        before, after = old.get(key, _ABSENT), new.get(key, _ABSENT)
        if isinstance(before, dict) and isinstance(after, dict):
            found += _differences(before, after, f"{above}{key}.")
        elif before != after:
            found.append(f"{above}{key} = {_short(before)} where it is now {_short(after)}")
    return found


def _short(value: Any) -> str:
    text = value if value == _ABSENT else json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
