"""Write a project file in which every key stands, with its meaning, its default or a better value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic.fields import FieldInfo

from unetflow.settings import Cluster, Data, Model, Prepare, Record, Run, Segment, Train

SECTIONS: dict[str, type[Record]] = {
    "run": Run,
    "data": Data,
    "prepare": Prepare,
    "model": Model,
    "train": Train,
    "segment": Segment,
    "cluster": Cluster,
}
_EXAMPLES = {"raw": "raw.zarr", "labels": "labels.zarr"}  # for keys without a default


@dataclass(frozen=True)
class Choice:
    """A value for the project file, and the reason for it.

    A note is no value but a remark; the key stays commented out.
    """

    value: Any
    reason: str
    is_note: bool = False


Choices = Mapping[str, Mapping[str, Choice]]


def render(choices: Choices) -> str:
    """Return the text of a project file.

    Parameters
    ----------
    choices : mapping of section to mapping of key to Choice
        What is set; every other key is commented out with its description and default.

    Examples
    --------
    >>> text = render({"model": {"depth": Choice(3, "a small network")}})
    >>> [line for line in text.splitlines() if line.startswith("depth")]
    ['depth = 3    # a small network (default 4)']
    """
    parts = [
        "# The project file of unetflow: TOML. Paths are relative to this file; lengths are in voxels.\n"
        "# Keys that are commented out show their defaults, which are the numbers of the 2015 paper.\n"
    ]
    for name, record in SECTIONS.items():
        chosen = choices.get(name, {})
        parts.append(_section(name, record, chosen))
    return "\n".join(parts)


def to_toml(value: Any) -> str:
    """Write a value as TOML.

    Examples
    --------
    >>> to_toml({0: 0, 255: 1}), to_toml((1, 2.5)), to_toml(True)
    ('{0 = 0, 255 = 1}', '[1, 2.5]', 'true')
    """
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k} = {to_toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(to_toml(v) for v in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _section(name: str, record: type[Record], chosen: Mapping[str, Choice]) -> str:
    is_table = name == "data"
    header = f"[[{name}]]" if is_table else f"[{name}]"
    if is_table and not chosen:
        header = f"# {header}"
    meaning = (record.__doc__ or "").strip().splitlines()[0]
    hint = " One table a volume." if is_table else ""
    lines = [f"# {meaning}{hint}", header]
    for key, field in record.model_fields.items():
        lines.append(_line(key, field, chosen.get(key)))
    return "\n".join(lines) + "\n"


def _line(key: str, field: FieldInfo, choice: Choice | None) -> str:
    default = None if field.is_required() else field.get_default(call_default_factory=True)
    if choice is not None and not choice.is_note:
        was = "" if default is None or default == choice.value else f" (default {to_toml(default)})"
        return f"{key} = {to_toml(choice.value)}    # {choice.reason}{was}"
    if choice is not None:
        return f"# {key} = {to_toml(choice.value)}    # {choice.reason}"
    shown = _EXAMPLES.get(key) if field.is_required() else default
    value = "" if shown is None else f" {to_toml(shown)}"
    return f"# {key} ={value}    # {field.description}"
