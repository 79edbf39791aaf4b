"""docs/formats.md against a real run: each file, attribute, column and record by its name."""

from __future__ import annotations

import csv
import json
import re
import struct
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from newcomer import Made
from pages import ROOT, text_of

PAGE = text_of("formats.md")


def rows_under(heading: str) -> list[list[str]]:
    """Return the cells of the tables under a heading, without their heads."""
    section = re.split(r"^## ", PAGE, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith(heading + "\n"))
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [row for row, below in zip(cells, [*cells[1:], [""]], strict=True) if "---" not in row[0] + below[0]]


def names_under(heading: str) -> list[str]:
    """Return the names of the first column; those that are only sometimes there are left out."""
    rows = [row for row in rows_under(heading) if not row[1].startswith("only with `")]
    return [name for row in rows for name in re.findall(r"^`([^`]+)`", row[0])]


def attributes(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "zarr.json").read_text())["attributes"]
    return found


def header(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the entry of a tensor file and the names of its tensors, read without our own code."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    found = json.loads(content[8 : 8 + length])
    metadata = found.pop("__metadata__")
    assert list(metadata) == ["unetflow"]
    return json.loads(metadata["unetflow"]), list(found)


def ledger(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line[9:]) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(
    ("heading", "folder"), [("The run folder", "run"), ("An output of segment", "raw.unetflow.zarr")]
)
def test_each_file_is_on_the_page_and_each_of_the_page_is_there(made: Made, heading: str, folder: str) -> None:
    place = made.folder / folder
    files = [path.relative_to(place) for path in place.rglob("*") if path.is_file()]
    there = {str(path) for path in files if "c" not in path.parts}
    rows = [(re.findall(r"^`([^`]+)`", row[0]), row[1]) for row in rows_under(heading)]
    told = {name: text for names, text in rows for name in names if "/" in name or "." in name}
    patterns = {
        name: re.compile(re.escape(name).replace("<n>", r"\d+").replace("<image>", r"[^/]+").replace("<file>", ".+")
                         .replace("<part>", r"\d+-of-\d+"))
        for name in told
    }  # fmt: skip
    for file in there:
        assert [n for n, pattern in patterns.items() if pattern.fullmatch(file)], f"{file} is not on the page"
    is_optional = {name: text.startswith("only ") and "instances" not in text for name, text in told.items()}
    missing = [n for n, pattern in patterns.items() if not is_optional[n] and not any(map(pattern.fullmatch, there))]
    assert not missing


def test_attributes_of_the_dataset_are_those_of_the_page(made: Made) -> None:
    found = attributes(made.folder / "run" / "dataset.zarr")
    names = names_under("dataset.zarr")
    arrays = [name for name in names if "/" in name]
    assert arrays == ["weights/<n>", *(f"patches/<split>/{name}" for name in ("image", "target", "weight"))]
    assert set(found) == {"unetflow"}
    assert set(found["unetflow"]) == set(names) - set(arrays)
    weights = attributes(made.folder / "run" / "dataset.zarr" / "weights" / "0")
    assert set(weights) == {"voxel_size", "translation", "unit"}


def test_dtypes_and_codecs_of_the_dataset_are_those_of_the_page(made: Made) -> None:
    for row in rows_under("dataset.zarr"):
        if "/" in row[0]:
            place = row[0].strip("`").replace("<n>", "0").replace("<split>", "train")
            array = json.loads((made.folder / "run" / "dataset.zarr" / place / "zarr.json").read_text())
            assert array["data_type"] == row[2].replace("the raw's", "uint8"), place
            (sharding,) = array["codecs"]
            inner = sharding["configuration"]
            assert inner["codecs"][-1] == {"name": "zstd", "configuration": {"level": 1, "checksum": True}}
            assert inner["index_codecs"][-1]["name"] == "crc32c"


def test_the_header_of_a_model_is_that_of_the_page(made: Made) -> None:
    record, tensors = header(made.folder / "run" / "model.safetensors")
    assert set(record) == set(names_under("model.safetensors"))
    assert {"contract.0.0.weight", "head.bias"} <= set(tensors)


def test_a_checkpoint_is_that_of_the_page(made: Made) -> None:
    (path,) = (made.folder / "run" / "checkpoints").iterdir()
    record, tensors = header(path)
    assert set(record) == {"step", "state", "sha256"}
    assert {name.partition("/")[0] for name in tensors} == set(names_under("checkpoints"))


def test_columns_are_those_of_the_page(made: Made) -> None:
    with (made.folder / "run" / "metrics.csv").open(newline="") as file:
        assert next(csv.reader(file)) == names_under("metrics.csv")
    columns = [
        (row[0].strip("`").replace("<axis>", axis), row[1])
        for row in rows_under("The table of objects") for axis in ("zyx" if "<axis>" in row[0] else " ")
    ]  # fmt: skip
    names = [name for name, _ in columns]
    schema = pq.read_schema(made.folder / "raw.unetflow.zarr" / "objects.parquet")
    assert [(field.name, str(field.type)) for field in schema] == columns
    assert {key.decode() for key in schema.metadata} == {"length_unit", "axes", "voxel_size"}
    with (made.folder / "raw.unetflow.zarr" / "objects.csv").open(newline="") as file:
        assert next(csv.reader(file)) == names


def test_attributes_of_an_output_are_those_of_the_page(made: Made) -> None:
    out = made.folder / "raw.unetflow.zarr"
    keys = [name for name in names_under("An output of segment") if "/" not in name and "." not in name]
    assert set(attributes(out)) == {"ome", "unetflow"}
    assert set(attributes(out)["unetflow"]) == set(keys)
    assert set(attributes(out)["ome"]) == {"version", "multiscales", "omero"}
    assert set(attributes(out / "labels")["ome"]) == {"version", "labels"}
    assert set(attributes(out / "labels" / "classes")["ome"]) == {"version", "multiscales", "image-label"}
    assert set(attributes(out / "labels" / "instances")["unetflow"]) == {"objects", "sizes"}


@pytest.mark.parametrize(
    ("stage", "place"),
    [("prepare", "run"), ("train", "run"), ("segment", "raw.unetflow.zarr"), ("convert", "converted.zarr")],
)
def test_records_of_a_ledger_are_those_of_the_page(made: Made, stage: str, place: str) -> None:
    (prints, names) = (
        set(re.findall(r"`(\w+)`", row[1])) for row in rows_under("The ledger") if row[0] == stage
    )  # fmt: skip
    first, *records = ledger(made.folder / place / ".unetflow" / stage / "ledger")
    assert set(first) == {"fingerprint"}
    assert set(first["fingerprint"]) == prints
    assert {frozenset(r) for r in records} <= {frozenset(("pass", "done", "report")), frozenset(("name", "value"))}
    found = {record["name"] for record in records if "name" in record}
    assert found <= names
    source = "".join(path.read_text() for path in (ROOT / "unetflow" / "stages").glob("*.py"))
    assert not [name for name in names - found if f'"{name}"' not in source]


def test_what_convert_says_of_its_output_is_on_the_page(made: Made) -> None:
    assert set(attributes(made.folder / "converted.zarr")["unetflow"]) == set(names_under("What convert writes"))


def test_the_report_of_a_predicted_block_is_that_of_the_page(made: Made) -> None:
    records = ledger(made.folder / "raw.unetflow.zarr" / ".unetflow" / "segment" / "ledger")
    (text,) = re.findall(r"The report of a block of `predict` has (.*?)\. The error", PAGE, re.DOTALL)
    report = next(r["report"] for r in records if r.get("pass") == "predict")
    assert set(report) == set(re.findall(r"`(\w+)`", text))


def test_the_lock_is_that_of_the_page(tmp_path: Path) -> None:
    from unetflow.storage.lock import acquire_lock

    with acquire_lock(tmp_path):
        found = json.loads((tmp_path / "lock").read_text())
    (text,) = re.findall(r"is a JSON object: (.*?)\. It is touched", PAGE, re.DOTALL)
    assert list(found) == re.findall(r"`(\w+)`", text)


def test_scores_that_are_kept_are_those_of_the_page(made: Made) -> None:
    found = json.loads((made.folder / "raw.unetflow.zarr" / ".unetflow" / "scores.json").read_text())
    assert set(found) == {"fingerprint", "evaluations"}
    (evaluation,) = found["evaluations"]
    assert list(sorted(evaluation)) == sorted(names_under("scores.json"))
    asked = next(row[1] for row in rows_under("scores.json") if row[0] == "`asked`")
    assert set(evaluation["asked"]) == set(re.findall(r"`(\w+)`", asked))
