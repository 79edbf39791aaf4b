"""Write docs/settings.md from the schema of the project file.

python docs/make/settings.py > docs/settings.md
"""

from __future__ import annotations

import json
from typing import Any

from unetflow.stages.schema import project_schema

HEAD = """# All settings

Made from the schema of the project file (`unetflow init --schema`); a test holds it to that. Defaults are the paper's
numbers where there are such; `unetflow init` writes better ones where it finds them in the data. How they are set:
[the project file](project-file.md)."""
WORDS = {
    "integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`", "object": "table"
}  # fmt: skip
BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def kind_of(field: dict[str, Any]) -> str:
    """Say what a value may be, in words."""
    if "anyOf" in field:
        kinds = [kind_of(part) for part in field["anyOf"] if part.get("type") != "null"]
        return ", or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return " or ".join(f"`{json.dumps(word)}`" for word in field["enum"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    if field.get("type") == "array":
        inner = field.get("items", {})
        return f"list of: {kind_of(inner)}"
    bounds = [f"{word} {field[key]}" for key, word in BOUNDS.items() if key in field]
    return " ".join([WORDS[field["type"]], *bounds])


def rows(section: dict[str, Any]) -> list[str]:
    """Return a line a key."""
    needed = section.get("required", [])
    lines = ["| key | default | what it is | what it may be |", "|---|---|---|---|"]
    for name, field in section["properties"].items():
        default = "needed" if name in needed else f"`{json.dumps(field.get('default'))}`"
        default = "" if default in ("`null`", "`[]`", "`{}`") else default
        text = field["description"].replace("|", "\\|")
        lines.append(f"| `{name}` | {default} | {text} | {kind_of(field)} |")
    return lines


def page() -> str:
    """Return the page."""
    schema = project_schema()
    parts = [HEAD]
    for name, field in schema["properties"].items():
        record = schema["$defs"][(field.get("items") or field)["$ref"].rpartition("/")[2]]
        title = f"[[{name}]]" if name == "data" else f"[{name}]"
        parts.append("\n".join([f"## `{title}`", "", record["description"], "", *rows(record)]))
    return "\n\n".join(parts)


if __name__ == "__main__":
    print(page())
