"""Inputs that are damaged, missing, hostile or of another kind: never zeros in place of data, never a traceback."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from typer.testing import CliRunner, Result
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from unetflow.cli import app
from unetflow.geometry import Box
from unetflow.storage.array import CorruptChunkError, read_region

SHAPE = (2, 70, 300)


@pytest.fixture
def raw(place: Path, tmp_path: Path) -> Path:
    """A copy of the raw volume in chunks of (1, 64, 64), without shards, to damage."""
    voxels = np.asarray(zarr.open_array(place / "raw.zarr" / "0")[:])
    target = zarr.create_array(
        tmp_path / "in.zarr", shape=voxels.shape, chunks=(1, 64, 64), dtype=voxels.dtype,
        compressors=ZstdCodec(checksum=True), fill_value=0, dimension_names=("z", "y", "x"),
    )  # fmt: skip
    target[:] = np.maximum(voxels, 1)
    return tmp_path / "in.zarr"


@pytest.fixture
def segment(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(place)

    def run(source: Path, *words: str) -> Result:
        return CliRunner().invoke(
            app, ["segment", str(source), "-o", str(tmp_path / "out.zarr"), "--cluster", "none", "--json", "-q", *words]
        )

    return run


def refused(result: Result, *parts: str) -> None:
    assert result.exit_code == 2, (result.exit_code, result.stderr, result.exception)
    assert "Traceback" not in result.stderr
    assert all(part in result.stderr for part in parts), result.stderr


def test_a_damaged_chunk_is_set_aside_by_name_and_done_when_it_is_mended(
    raw: Path, segment: Any, tmp_path: Path
) -> None:
    whole = segment(raw, "--set", "run.dir=" + str(tmp_path / "none"), "-m", "run")
    assert whole.exit_code == 0, whole.stderr
    wanted = {p.relative_to(tmp_path): p.read_bytes() for p in (tmp_path / "out.zarr" / "0").rglob("*") if p.is_file()}
    shutil.rmtree(tmp_path / "out.zarr")
    file = raw / "c" / "1" / "0" / "2"
    good, stamp = file.read_bytes(), os.stat(file)
    file.write_bytes(good[:-9] + b"?" * 9)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # only the content is another one
    # The volume's statistics need every chunk; take those of the training.
    words = ("--set", "segment.outputs=[\"probabilities\"]", "-m", str(of_training(tmp_path)))
    result = segment(raw, *words)
    assert result.exit_code == 3, result.stderr
    found = json.loads(result.stdout)["quarantined"]
    assert found and len(found) < 20
    record = next(r for r in ledger(tmp_path / "out.zarr") if "failed" in r)["error"]
    assert "c/1/0/2" in record["error"] and str(raw) in record["error"]
    assert "CorruptChunkError" in record["traceback"]
    assert record["input"]["unreadable_chunks"] >= 0 and record["input"]["nan"] == 0
    file.write_bytes(good)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert segment(raw, *words).exit_code == 3  # not without being told
    mended = segment(raw, *words, "--retry-failed")
    assert mended.exit_code == 0, mended.stderr
    assert json.loads(mended.stdout)["quarantined"] == []
    assert wanted.keys() == {p.relative_to(tmp_path) for p in (tmp_path / "out.zarr" / "0").rglob("*") if p.is_file()}


def of_training(tmp_path: Path) -> Path:
    """Return the model with the normalisation of its training data in the place of each volume's own."""
    from unetflow.nn.checkpoint import export_model, load_model

    model, facts = load_model("run")
    facts.pop("architecture")
    export_model(tmp_path / "model.safetensors", model, {**facts, "normalise_per": "training"})
    return tmp_path / "model.safetensors"


def ledger(out: Path) -> list[dict[str, Any]]:
    lines = (out / ".unetflow" / "segment" / "ledger").read_bytes().splitlines()
    return [json.loads(line[9:]) for line in lines]


# What carries no checksum cannot tell: docs/faults.md says so.
SILENT = {("none", "zeroed"), ("none", "flipped"), ("blosc", "flipped")}
DAMAGES = [
    (codec, damage)
    for codec in ("zstd", "gzip", "blosc", "none", "shard")
    for damage in ("empty", "cut", "zeroed", "flipped")
    if (codec, damage) not in SILENT
]


@pytest.mark.parametrize(("codec", "damage"), DAMAGES)
def test_damage_is_never_read_as_voxels(tmp_path: Path, codec: str, damage: str) -> None:
    voxels = np.random.default_rng(0).integers(1, 255, (64, 64)).astype(np.uint8)
    codecs: Any = {"zstd": ZstdCodec(checksum=True), "gzip": GzipCodec(), "blosc": BloscCodec(), "none": None}
    made = zarr.create_array(
        tmp_path / "a", shape=(64, 64), chunks=(32, 32), shards=(64, 64) if codec == "shard" else None, dtype="u1",
        compressors=codecs.get(codec, ZstdCodec(checksum=True)), fill_value=0,
    )  # fmt: skip
    made[:] = voxels
    file = tmp_path / "a" / "c" / "0" / "0"
    content = bytearray(file.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 8
    changed = {"empty": b"", "cut": content[: len(content) // 2], "zeroed": bytes(len(content))}.get(damage, content)
    file.write_bytes(changed)
    out = np.zeros((64, 64), np.uint8)
    with pytest.raises(CorruptChunkError) as caught:
        read_region(str(tmp_path / "a"), Box((0, 0), (64, 64)), out)
    assert "c/0/0" in str(caught.value) and str(tmp_path / "a") in str(caught.value)


BOMB = """
import sys, numpy as np
from unetflow.geometry import Box
from unetflow.memory import peak_memory
from unetflow.storage.array import CorruptChunkError, read_region
before = peak_memory()  # not getrusage, whose figure a process inherits from the one that started it
try:
    read_region(sys.argv[1], Box((0, 0), (64, 64)), np.zeros((64, 64), np.uint8))
except CorruptChunkError as error:
    print(error)
else:
    sys.exit("the bomb was read")
print((peak_memory() - before) // 2**20)
"""


@pytest.mark.parametrize("is_sharded", [False, True])
@pytest.mark.parametrize("codec", ["zstd", "gzip", "blosc"])
def test_a_bomb_is_not_decoded(tmp_path: Path, codec: str, is_sharded: bool) -> None:
    codecs: Any = {"zstd": ZstdCodec(), "gzip": GzipCodec(level=1), "blosc": BloscCodec()}
    length = 16384  # a quarter of a gigabyte of ones
    made = zarr.create_array(
        tmp_path / "a", shape=(length, length), chunks=(length, length), dtype="u1", compressors=codecs[codec],
        shards=(length, length) if is_sharded else None, fill_value=0,
    )  # fmt: skip
    made[:] = 1
    file = tmp_path / "a" / "zarr.json"
    file.write_text(file.read_text().replace(str(length), "64"))
    ended = subprocess.run([sys.executable, "-c", BOMB, str(tmp_path / "a")], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    message, grown = ended.stdout.strip().splitlines()
    assert "c/0/0" in message
    assert int(grown) < 100, "it was decoded"


def test_a_chunk_larger_than_the_memory_is_refused_before_it_is_read(segment: Any, tmp_path: Path) -> None:
    from unetflow.errors import InputError
    from unetflow.stages.admission import refuse_large_chunks
    from unetflow.stages.work import Conditions
    from unetflow.storage.volume import open_volume

    zarr.create_array(tmp_path / "a", shape=(4000, 4000), chunks=(2000, 2000), dtype="u2", fill_value=0)

    class Client:
        def scheduler_info(self, n_workers: int) -> Any:
            return {"workers": {"a": {"memory_limit": 4_000_000}}}

    with pytest.raises(InputError, match=r"fit the memory of a worker, 4.0 MB, got chunks \(2000, 2000\) of 8.0 MB"):
        refuse_large_chunks([open_volume(str(tmp_path / "a"))], Conditions(Client()))


def test_missing_chunks_are_counted_filled_and_refused_where_that_is_asked(raw: Path, segment: Any) -> None:
    whole = segment(raw, "--plan")
    assert json.loads(whole.stdout)["missing_chunks"] == 0, whole.stderr
    (raw / "c" / "1" / "0" / "2").unlink()
    (raw / "c" / "0" / "1" / "0").unlink()
    assert json.loads(segment(raw, "--plan").stdout)["missing_chunks"] == 2
    # Of two planes the first reads one of them.
    assert json.loads(segment(raw, "--plan", "--roi", "0:1,:,:").stdout)["missing_chunks"] == 1
    refused(segment(raw, "--set", "segment.missing=refuse"), "2 chunk files are missing", str(raw))
    done = segment(raw)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["missing_chunks"] == 2


def test_other_voxels_than_the_models_are_told_resampled_or_refused(
    raw: Path, segment: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from unetflow.storage.ngff import create_image

    levels = create_image(
        str(tmp_path / "other.zarr"), axes="zyx", shape=SHAPE, dtype="uint8", chunk=(1, 64, 64),
        voxel_size=(0.1, 0.02, 0.02), n_levels=1,
    )  # fmt: skip
    levels[0].write(levels[0].box, np.ones((1, *SHAPE), np.uint8))
    with caplog.at_level("WARNING"):
        told = segment(tmp_path / "other.zarr", "--plan")
    assert told.exit_code == 0, told.stderr
    assert "(0.02, 0.02)" in caplog.text + told.stderr
    assert 'segment.voxel_size = "resample"' in caplog.text + told.stderr
    refused(segment(tmp_path / "other.zarr", "--set", "segment.voxel_size=refuse"), "resample", "(0.02, 0.02)")
    # The raw volume of the test says no voxel size.
    refused(segment(raw, "--set", "segment.voxel_size=resample"), "untold size", "--voxel-size")
    assert not (tmp_path / "out.zarr").exists()
    planned = segment(tmp_path / "other.zarr", "--set", "segment.voxel_size=resample", "--plan")
    assert json.loads(planned.stdout)["resampled_by"] == [1.0, 0.5, 0.5], planned.stderr
    done = segment(tmp_path / "other.zarr", "--set", "segment.voxel_size=resample")
    assert done.exit_code == 0, done.stderr
    assert zarr.open_array(tmp_path / "out.zarr" / "0").shape[1:] == SHAPE


@pytest.mark.parametrize(
    ("name", "value", "part"),
    [
        ("float32 with NaN", np.float32("nan"), "NaN"),
        ("float32 with Inf", np.float32("inf"), "NaN or infinite"),
        ("complex", np.complex64(1), "complex"),
    ],
)
def test_what_is_no_intensity_is_refused_with_its_place(
    segment: Any, tmp_path: Path, name: str, value: Any, part: str
) -> None:
    voxels = np.ones((2, 70, 300), value.dtype)
    voxels[1, 5, 250] = value
    zarr.save_array(tmp_path / "odd.zarr", voxels)
    refused(segment(tmp_path / "odd.zarr"), part, "odd.zarr")
    assert not (tmp_path / "out.zarr").exists() or list((tmp_path / "out.zarr").glob("[!.]*")) == []


@pytest.mark.parametrize("dtype", ["int16", "uint16", ">u2", "float64", "bool", "int8"])
def test_every_plain_type_is_segmented(segment: Any, tmp_path: Path, dtype: str) -> None:
    voxels = np.random.default_rng(1).integers(0, 2, (1, 40, 40)).astype(dtype)
    zarr.save_array(tmp_path / "typed.zarr", voxels, zarr_format=2 if dtype.startswith(">") else 3)
    result = segment(tmp_path / "typed.zarr", "--outputs", "classes", "--set", "segment.tile=[1,32,32]")
    assert result.exit_code == 0, (result.stderr, result.exception)


def test_a_symlink_loop_and_a_path_that_climbs_are_refused(segment: Any, tmp_path: Path) -> None:
    (tmp_path / "loop.zarr").symlink_to(tmp_path / "loop.zarr")
    refused(segment(tmp_path / "loop.zarr"), "loop.zarr")
    zarr.save_array(tmp_path / "out", np.ones((40, 40), np.uint8))
    group = zarr.create_group(tmp_path / "climbs.zarr")
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{
            "axes": [{"name": n, "type": "space"} for n in "yx"],
            "datasets": [{"path": "../out", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}],
        }],
    }  # fmt: skip
    refused(segment(tmp_path / "climbs.zarr"), "climbs.zarr", "inside its image", "'../out'")


def limit() -> Iterator[None]:
    """Let this process open few files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 24, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


few_files = pytest.fixture(limit)


def test_few_open_files_are_enough(raw: Path, segment: Any, few_files: None) -> None:
    assert segment(raw, "--outputs", "classes").exit_code == 0
