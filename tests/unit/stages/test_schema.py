"""The schema for editors says what the commands say."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.errors import InputError
from unetflow.settings import Settings, make_settings
from unetflow.stages.template import SECTIONS, Choice, render

ROOT = Path(__file__).parents[3]
PROJECTS = sorted(ROOT.glob("workflows/*/unetflow.toml"))


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """What the command prints."""
    result = CliRunner().invoke(app, ["init", "--schema"])
    assert result.exit_code == 0, result.stderr
    printed: dict[str, Any] = json.loads(result.stdout)
    return printed


def errors(schema: dict[str, Any], values: dict[str, Any]) -> list[str]:
    # As a TOML reader of another language gives them: keys are strings.
    found = jsonschema.Draft202012Validator(schema).iter_errors(json.loads(json.dumps(values)))
    return [error.message for error in found]


def test_it_is_valid_and_tells_the_meaning_of_every_section_and_key(schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    assert set(schema["properties"]) == set(SECTIONS)
    for record in SECTIONS.values():
        told = schema["$defs"][record.__name__]
        assert told["description"] == record.__doc__
        assert all(told["properties"][key]["description"] for key in record.model_fields)
        assert set(told["properties"]) == set(record.model_fields)


def test_it_writes_no_file_and_takes_no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert CliRunner().invoke(app, ["init", "--schema"]).exit_code == 0
    assert list(tmp_path.iterdir()) == []
    refused = CliRunner().invoke(app, ["init", "raw.zarr", "--schema"])
    assert refused.exit_code == 2
    assert "leave it out" in refused.stderr


@pytest.mark.parametrize("path", PROJECTS, ids=lambda path: path.parent.name)
def test_it_takes_the_project_files_of_the_workflows(schema: dict[str, Any], path: Path) -> None:
    assert errors(schema, tomllib.loads(path.read_text())) == []


def test_there_are_workflows() -> None:
    assert len(PROJECTS) >= 5


def test_it_takes_what_init_writes_with_every_key_uncommented(schema: dict[str, Any]) -> None:
    data = {"raw": Choice("raw.zarr", ""), "labels": Choice("labels.zarr", ""), "class_map": Choice({0: 0, 255: 1}, "")}
    text = render({"data": data})
    assert errors(schema, tomllib.loads(text)) == []
    whole = tomllib.loads(re.sub(r"^# (\w+ = (?! ))", r"\1", text, flags=re.MULTILINE))
    assert len(whole["train"]) > 10
    assert errors(schema, whole) == []


@pytest.mark.parametrize(
    "values",
    [
        {"prepare": {"w_0": 10.0}},
        {"prepair": {}},
        {"prepare": {"sigma": 0}},
        {"model": {"preset": "unet2016"}},
        {"data": [{"raw": "raw.zarr"}]},
        {"segment": {"tile": 64}},
        {"folder": "."},
    ],
)
def test_it_refuses_what_the_commands_refuse(schema: dict[str, Any], values: dict[str, Any]) -> None:
    assert errors(schema, values)
    with pytest.raises(InputError):
        make_settings(values)


@pytest.mark.parametrize(
    "values",
    [
        {"segment": {"memory": "3 GB"}},
        {"segment": {"memory": 10**9}},
        {"segment": {"fill_holes": True}},
        {"segment": {"fill_holes": 30}},
        {"data": [{"raw": "a", "labels": "b", "ignore": 7}]},
        {"data": [{"raw": "a", "labels": "b", "ignore": [7, 8], "class_map": {"255": 1}}]},
        {"model": {"kernel": [[1, 3, 3], [3, 3, 3]]}},
        {"cluster": {"workers": "2:32"}},
    ],
)
def test_it_takes_every_form_of_a_value_that_the_commands_take(schema: dict[str, Any], values: dict[str, Any]) -> None:
    assert errors(schema, values) == []
    assert make_settings(values) != Settings()
