"""What the functions return has the keys, and the kinds of values, that a type checker is told."""

from __future__ import annotations

import inspect
import re
from importlib.resources import files
from pathlib import Path
from types import UnionType
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

import numpy as np
import pytest
from newcomer import Made

import unetflow
from unetflow.stages import results
from unetflow.stages.results import Scores


def fits(value: Any, kind: Any) -> bool:
    """Say whether a value is of a type, as far down as it is told."""
    if kind is Any:
        return True
    origin, parts = get_origin(kind), get_args(kind)
    if origin is NotRequired:
        return fits(value, parts[0])
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(fits(v, parts[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is kind


def assert_is(found: Any, promised: Any, absent: set[str]) -> None:
    """Assert that a result has the promised keys but those ``absent``, none besides, and values of their types."""
    assert is_typeddict(promised)
    assert set(found) == set(promised.__annotations__) - absent
    assert absent <= promised.__optional_keys__
    hints = get_type_hints(promised)
    assert not {key: value for key, value in found.items() if not fits(value, hints[key])}


def promised_by(function: Any) -> Any:
    """Return the record that the annotation of a function's result names."""
    return vars(results)[str(inspect.signature(function).return_annotation)]


def test_stages_return_what_they_promise(made: Made) -> None:
    absent = {
        "prepare": set(),
        "train": set(),
        "segment": {"part", "seam_score"},
        "evaluate": {"overlays"},
        "convert": {"chunk", "shard", "block"},
    }
    for name, missing in absent.items():
        assert_is(made.results[name], promised_by(getattr(unetflow, name)), missing)


def test_the_others_return_what_they_promise(place: Path) -> None:
    report = unetflow.report("raw.unetflow.zarr")
    assert_is(report, promised_by(unetflow.report), {"neuroglancer"})
    verified = unetflow.verify("raw.unetflow.zarr", n_blocks=1)
    assert_is(verified, promised_by(unetflow.verify), set())
    assert_is(unetflow.init("raw.zarr", "labels.zarr", out="new.toml"), promised_by(unetflow.init), set())
    optional = {"kind", "dims", "axes", "shape", "voxel_size", "images", "reason"}
    assert_is(unetflow.init(out="empty.toml"), promised_by(unetflow.init), optional)
    labels = unetflow.label_volume(np.eye(4, dtype=np.uint8), "eye.zarr")
    assert_is(labels, results.LabelResult, set())
    planned = unetflow.convert("raw.zarr", "planned.zarr", plan_only=True)
    done = {"blocks_compared", "blocks_skipped", "retries", "quarantined", "seconds"}
    assert_is(planned, promised_by(unetflow.convert), done)


def test_a_score_of_arrays_is_what_it_promises() -> None:
    truth = np.array([[1, 1, 0, 2, 2, 2]])
    assert_is(unetflow.score(truth, truth), Scores, {"overlays"})


@pytest.mark.parametrize("name", [name for name in unetflow.__all__ if not name.startswith("_")])
def test_every_public_function_has_a_typed_result(name: str) -> None:
    told = str(inspect.signature(getattr(unetflow, name)).return_annotation)
    if name == "label_volume":  # an array or a dictionary
        assert told == "Any"
    else:
        assert "dict" not in told and told != "Any", told


@pytest.mark.parametrize("name", [name for name in unetflow.__all__ if not name.startswith("_")])
def test_every_parameter_of_a_public_function_is_described(name: str) -> None:
    function = getattr(unetflow, name)
    told = re.findall(r"^([\w, ]+) :", inspect.getdoc(function).partition("Parameters\n---")[2], re.MULTILINE)
    described = {word.strip() for names in told for word in names.split(",")}
    assert set(inspect.signature(function).parameters) <= described


def test_the_package_says_that_it_is_typed() -> None:
    assert files("unetflow").joinpath("py.typed").is_file()
