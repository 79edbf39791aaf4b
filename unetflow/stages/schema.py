"""The project file's rules as JSON Schema, for editors that complete and check TOML."""

from __future__ import annotations

from typing import Any

from unetflow.settings import Settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def project_schema() -> dict[str, Any]:
    """Return the JSON Schema of the project file.

    Returns
    -------
    dict
        Each key with its meaning, unit, default and bounds; unknown keys are refused.

    Notes
    -----
    What one key asks of another (``roi`` of the volume's shape, ``head`` of the kind of labels) no schema says;
    the commands do.

    Examples
    --------
    >>> prepare = project_schema()["$defs"]["Prepare"]
    >>> prepare["properties"]["w0"]["description"], prepare["additionalProperties"]
    ('height of the border weight', False)
    """
    schema = Settings.model_json_schema()
    del schema["properties"]["folder"]  # where the file lies; no key of it
    return {"$schema": DIALECT, **schema, "title": "The project file of unetflow"}
