"""Verify: every chunk read, random blocks computed again; one byte or one voxel changed is named."""

from __future__ import annotations

import json
import shutil
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import project
import pytest
import zarr
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.stages.evaluate import evaluate
from unetflow.stages.report import report
from unetflow.stages.segment import segment
from unetflow.stages.verify import verify

ALL = 100  # more blocks than there are


@pytest.fixture(scope="module")
def output(trained: Path) -> Path:
    """A finished output in blocks of a few shards, with a pyramid."""
    project.make_volume(trained / "tall", (3, 140, 280))
    settings = project.settings_in(trained, segment={"shard": [1, 64, 64], "chunk": [1, 32, 32], "min_size": 4})
    out = trained / "verified.zarr"
    segment(settings, str(trained / "tall" / "raw.zarr"), out=str(out))
    return out


@pytest.fixture
def copy(output: Path, tmp_path: Path) -> Path:
    """An output that a test may spoil."""
    return Path(shutil.copytree(output, tmp_path / "copy.zarr"))


def command(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["verify", *map(str, words), "--cluster", "none"])


def test_a_sound_output_passes_in_a_loop_and_on_workers(output: Path, two_workers: Any) -> None:
    here = verify(str(output), n_blocks=ALL)
    assert here["damaged"] == here["mismatches"] == []
    assert len(here["recomputed"]) == 3
    stored = [p for p in output.rglob("*") if p.is_file() and "c" in p.parts and ".unetflow" not in p.parts]
    assert here["files"] == len(stored)
    there = verify(str(output), two_workers, n_blocks=2, seed=1)
    assert there["mismatches"] == []
    assert len(set(there["recomputed"])) == 2


def test_the_command_says_that_all_is_well_and_writes_nothing(output: Path) -> None:
    before = {p: p.read_bytes() for p in output.rglob("*") if p.is_file()}
    result = command(output, "--blocks", "2")
    assert result.exit_code == 0, result.stderr
    assert "2 blocks computed again are the same" in result.stderr
    assert {p: p.read_bytes() for p in output.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("array", ["0", "labels/classes/0", "labels/instances/1"])
def test_one_changed_byte_is_named_by_array_voxels_and_file(copy: Path, array: str) -> None:
    file = max((p for p in (copy / array / "c").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 0x10
    file.write_bytes(content)
    result = command(copy, "--json")
    assert result.exit_code == 1
    [damage] = json.loads(result.stdout)["damaged"]
    assert damage["array"] == array
    assert damage["file"] == str(file)
    assert str(file) in result.stderr
    # The box is that of the damaged chunk: what reads it fails, what reads the rest of the array does not.
    stored = zarr.open_array(copy / array, mode="r")
    lead = (slice(None),) * (stored.ndim - 3)
    box = tuple(slice(*map(int, part.split(":"))) for part in damage["box"].split(","))
    with pytest.raises(Exception, match=r"(?i)checksum|corrupt|crc|zstd|decompress|data"):
        stored[(*lead, *box)]


@pytest.mark.parametrize(
    ("array", "change", "where"),
    [
        ("0", lambda v: (int(v) + 40) % 256, (1, 1, 70, 100)),
        ("labels/classes/0", lambda v: 1 - v, (1, 70, 100)),
        ("labels/instances/0", lambda v: v + 1, (0, 3, 200)),
        ("labels/classes/1", lambda v: 1 - v, (1, 10, 20)),
        ("1", lambda v: (int(v) + 9) % 256, (0, 0, 10, 20)),
    ],
)
def test_one_changed_voxel_behind_a_right_checksum_is_named_with_its_block(
    copy: Path, array: str, change: Any, where: tuple[int, ...]
) -> None:
    stored = zarr.open_array(copy / array, mode="r+")
    stored[where] = change(stored[where])
    result = command(copy, "--blocks", ALL, "--json")
    assert result.exit_code == 1, result.stderr
    found = json.loads(result.stdout)
    assert found["damaged"] == []
    told = [d for d in found["mismatches"] if d["array"] == array]
    assert told, found["mismatches"]
    level = int(array[-1])
    place = [n * 2 ** (level if axis else 0) for axis, n in enumerate(where[-3:])]
    for difference in told:
        assert tuple(difference["first"]) == where[-3:]
        start, stop = zip(*(map(int, part.split(":")) for part in difference["box"].split(",")), strict=True)
        assert all(a <= p < b for a, p, b in zip(start, place, stop, strict=True))
        assert Path(difference["file"]).is_file()
        assert f"block {difference['block']}, voxels {difference['box']}: {array} differs in 1 voxels" in result.stderr


def test_an_output_of_another_model_or_without_its_inputs_is_refused_with_the_cure(
    copy: Path, trained: Path, tmp_path: Path
) -> None:
    model = trained / "run" / "model.safetensors"
    away = model.rename(model.with_name("away.safetensors"))
    try:
        gone = command(copy)
        assert gone.exit_code == 2
        assert "--model" in gone.stderr
        assert command(copy, "--model", away, "--blocks", 1).exit_code == 0
    finally:
        away.rename(model)
    result = command(copy, "--model", _with_other_weights(model, tmp_path / "other.safetensors"))
    assert result.exit_code == 2
    assert "sha256" in result.stderr
    raw = trained / "tall" / "raw.zarr"
    moved = raw.rename(raw.with_name("moved.zarr"))
    try:
        gone = command(copy)
        assert gone.exit_code == 2
        assert "--volume" in gone.stderr
        assert command(copy, "--volume", moved, "--blocks", 1).exit_code == 0
    finally:
        moved.rename(raw)


def _with_other_weights(model: Path, target: Path) -> Path:
    from unetflow.nn.checkpoint import load_model
    from unetflow.nn.tensorfile import read_tensors, write_tensors

    tensors, metadata = read_tensors(model)
    write_tensors(target, {name: tensor + 1 for name, tensor in tensors.items()}, metadata)
    load_model(target)
    return target


def test_an_unfinished_output_and_a_missing_one_are_refused(trained: Path, tmp_path: Path) -> None:
    out = tmp_path / "part.zarr"
    segment(project.settings_in(trained), str(trained / "raw.zarr"), out=str(out), part="2/2")
    result = command(out)
    assert result.exit_code == 2
    assert "finished" in result.stderr
    assert command(out, "--blocks", 0).exit_code == 0
    missing = command(tmp_path / "nothing.zarr")
    assert missing.exit_code == 2
    assert "nothing.zarr" in missing.stderr


def test_each_image_of_a_collection_is_verified_and_told(trained: Path, tmp_path: Path) -> None:
    planes = {name: zarr.open_array(trained / f"{name}.zarr" / "0")[:2] for name in ("raw", "labels")}
    for name, voxels in planes.items():
        zarr.open_group(tmp_path / name, mode="w")
        for image, plane in zip(("a", "b"), voxels, strict=True):
            zarr.save_array(tmp_path / name / image, plane)
    settings, out = project.settings_in(trained), tmp_path / "out.zarr"
    segment(settings, str(tmp_path / "raw"), out=str(out))
    evaluate(settings, str(out), str(tmp_path / "labels"))
    assert verify(str(out), n_blocks=ALL)["mismatches"] == []
    text = Path(report(out)["report"]).read_text()
    assert "a: the middle plane" in text
    assert "b: the middle plane" in text
    stored = zarr.open_array(out / "b" / "labels" / "classes" / "0", mode="r+")
    stored[5, 6] = 1 - stored[5, 6]
    found = verify(str(out), n_blocks=ALL)["mismatches"]
    assert {d["array"] for d in found} >= {"b/labels/classes/0"}
    assert all(d["file"].startswith(str(out / "b")) for d in found)


def test_what_was_computed_in_bf16_is_not_blamed_where_only_float32_is_at_hand(copy: Path) -> None:
    ledger = copy / ".unetflow" / "segment" / "ledger"
    lines = [json.loads(line[9:]) for line in ledger.read_bytes().splitlines()]
    for record in lines:
        if record.get("pass") == "predict" and "report" in record:
            record["report"]["precision"] = "bf16"
    contents = [json.dumps(record, separators=(",", ":")).encode() for record in lines]
    ledger.write_bytes(b"".join(b"%08x %s\n" % (zlib.crc32(c), c) for c in contents))
    result = command(copy)
    assert result.exit_code == 2
    assert "bf16" in result.stderr
    assert "--blocks 0" in result.stderr


@pytest.mark.parametrize(
    "section",
    [
        {"dtype": "float32", "outputs": ["probabilities", "classes"]},
        {"dtype": "float16"},
        {"outputs": ["classes"]},
        {"instances": "watershed", "fill_holes": True},
        {"mode": "blend", "connectivity": "full", "link": True},
    ],
)
def test_outputs_of_each_kind_pass(trained: Path, tmp_path: Path, section: dict[str, Any]) -> None:
    mask = np.zeros(project.SHAPE, np.uint8)
    mask[:, :70] = 1
    zarr.save_array(tmp_path / "mask.zarr", mask)
    out = tmp_path / "out.zarr"
    segment(
        project.settings_in(trained, segment=section), str(trained / "raw.zarr"), out=str(out),
        roi="0:3,20:100,5:132", mask=str(tmp_path / "mask.zarr"),
    )  # fmt: skip
    found = verify(str(out), n_blocks=ALL)
    assert found["damaged"] == found["mismatches"] == []
    assert found["recomputed"]
