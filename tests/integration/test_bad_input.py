"""Bad input on every command: one message with rule, value and cure, exit 2, nothing written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import project
import pytest
import zarr
from typer.testing import CliRunner, Result

from unetflow.cli import app


def run(*words: object) -> Result:
    """Run a command line in this process, without Dask."""
    return CliRunner().invoke(app, [str(word) for word in words])


def is_refused(result: Result, *parts: str) -> None:
    """Assert exit 2 and one message that holds every part, and no traceback."""
    assert result.exit_code == 2, (result.exit_code, result.stderr, result.exception)
    lines = [line for line in result.stderr.splitlines() if line.startswith("unetflow: ")]
    assert len(lines) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in lines[0], lines[0]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with small raw and labels, and nothing else."""
    rng = np.random.default_rng(0)
    zarr.save_array(tmp_path / "raw.zarr", rng.integers(0, 255, (4, 120, 120)).astype(np.uint8))
    zarr.save_array(tmp_path / "labels.zarr", rng.integers(0, 3, (4, 120, 120)).astype(np.uint8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(place: Path) -> set[str]:
    return {path.name for path in place.iterdir()}


BAD_PREPARE = {
    "a missing path": (["prepare", "nowhere.zarr", "labels.zarr"], ["nowhere.zarr", "does not exist"]),
    "labels of another shape": (["prepare", "raw.zarr", "small.zarr"], ["(4, 120, 120)", "(4, 60, 60)"]),
    "float labels": (["prepare", "raw.zarr", "float.zarr"], ["integers", "float32"]),
    "a patch larger than the volume": (
        ["prepare", "raw.zarr", "labels.zarr", "--set", "prepare.patch_shape=[1,572,572]"],
        ["(388, 388)", "(120, 120)", "prepare.patch_shape"],
    ),
    "an unknown key": (["prepare", "raw.zarr", "labels.zarr", "--set", "prepare.w_0=5"], ["w_0", "did you mean 'w0'"]),
    "a wrong number of lengths": (
        ["prepare", "raw.zarr", "labels.zarr", "--set", "prepare.patch_shape=[60]"], ["patch_shape", "[60]"]
    ),
    "a value out of range": (["prepare", "raw.zarr", "labels.zarr", "--set", "prepare.sigma=-1"], ["sigma", "-1"]),
    "raw without labels": (["prepare", "raw.zarr"], ["RAW and LABELS"]),
    "no data at all": (["prepare"], ["[[data]]", "unetflow init"]),
    "dims that the axes do not have": (
        ["prepare", "flat.zarr", "flat.zarr", "--set", "model.dims=3"], ["dims = 3", "yx"]
    ),
    "multilabel without channels": (
        ["prepare", "--set", 'data=[{raw="raw.zarr",labels="labels.zarr",kind="multilabel"}]',
         "--set", "run.seed=0"], ["--set needs"]
    ),
    "training without patches": (["train"], ["unetflow prepare"]),
    "a missing project file": (["train", "-c", "none.toml"], ["none.toml", "unetflow init"]),
    "segment without a model": (["segment", "raw.zarr"], ["model", "train one first"]),
    "a missing image folder": (["convert", "nowhere", "new.zarr"], ["nowhere"]),
    "evaluate of nothing": (["evaluate", "nowhere.zarr", "labels.zarr"], ["nowhere.zarr"]),
    "evaluate of two shapes": (["evaluate", "labels.zarr", "small.zarr"], ["(4, 120, 120)", "(4, 60, 60)"]),
    "a class map that is none": (["evaluate", "labels.zarr", "labels.zarr", "--class-map", "a"], ["0=0,255=1"]),
    "init of nothing": (["init", "nowhere.zarr", "labels.zarr"], ["nowhere.zarr"]),
    "a wrong axis": (["init", "raw.zarr", "labels.zarr", "--axes", "zyw"], ["zyw"]),
    "an unknown cluster": (["prepare", "raw.zarr", "labels.zarr", "--cluster", "moon"], ["moon"]),
    "a deadline that is none": (["prepare", "raw.zarr", "labels.zarr", "--deadline", "soon"], ["HH:MM:SS"]),
}


@pytest.mark.parametrize("what", BAD_PREPARE)
def test_bad_input_is_refused_and_nothing_written(place: Path, what: str) -> None:
    zarr.save_array(place / "small.zarr", np.zeros((4, 60, 60), np.uint8))
    zarr.save_array(place / "float.zarr", np.zeros((4, 120, 120), np.float32))
    zarr.save_array(place / "flat.zarr", np.zeros((120, 120), np.uint8))
    words, parts = BAD_PREPARE[what]
    before = names(place)
    cluster = [] if "--cluster" in words or words[0] == "init" else ["--cluster", "none"]
    is_refused(run(*words, *cluster), *parts)
    assert names(place) == before


def test_a_label_value_that_is_no_key_of_the_class_map_is_refused(place: Path) -> None:
    (place / "unetflow.toml").write_text(
        '[[data]]\nraw = "raw.zarr"\nlabels = "labels.zarr"\nkind = "classes"\nclass_map = {0 = 0, 1 = 1}\n'
        "[prepare]\npatch_shape = [1, 60, 60]\n[model]\ndepth = 2\n"
    )
    before = names(place)
    is_refused(run("prepare", "--cluster", "none"), "class_map", "2")
    assert names(place) == before


def test_nan_voxels_are_refused_with_their_place(place: Path) -> None:
    raw = np.zeros((4, 120, 120), np.float32)
    raw[2, 5, 5] = np.nan
    zarr.save_array(place / "nan.zarr", raw)
    is_refused(
        run("prepare", "nan.zarr", "labels.zarr", "--cluster", "none", "--set", "model.depth=2"), "1 NaN", "nan.zarr"
    )


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--set", "segment.tile=[1,30,33]"], ["stride (4, 4)", "use (1, 32, 36)"]),
        (["--set", "segment.memory='1 kB'"], ["segment.memory", "raise it"]),
        (["--roi", "0:9,0:20,0:20"], ["0:9,0:20,0:20"]),
        (["--outputs", "colours"], ["colours"]),
        (["--axes", "cyx"], ["1 channels", "got 3"]),
    ],
)
def test_what_segment_cannot_do_is_refused(
    trained: Path, tmp_path: Path, words: list[str], parts: list[str]
) -> None:
    out = tmp_path / "out.zarr"
    common = ["-m", trained / "run", "-o", out, "--cluster", "none"]
    is_refused(run("segment", trained / "raw.zarr", *common, *words), *parts)
    assert not out.exists()


def test_a_model_for_two_channels_is_refused_on_one(trained: Path, tmp_path: Path) -> None:
    from unetflow.architecture import UNetSpec
    from unetflow.nn.checkpoint import export_model, load_model
    from unetflow.nn.unet import UNet

    _, facts = load_model(trained / "run" / "model.safetensors")
    facts.pop("architecture")
    spec = UNetSpec.build(in_channels=2, depth=2, base_channels=4)
    export_model(tmp_path / "two.safetensors", UNet(spec), {**facts, "in_channels": 2})
    out = tmp_path / "out.zarr"
    result = run("segment", trained / "raw.zarr", "-m", tmp_path / "two.safetensors", "-o", out, "--cluster", "none")
    is_refused(result, "2 channels", "got 1")
    assert not out.exists()


def test_a_folder_that_is_not_ours_is_never_written_into(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = run("segment", trained / "raw.zarr", "-m", trained / "run", "-o", tmp_path, "--cluster", "none")
    is_refused(result, "--overwrite")
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_pickle_is_no_model(trained: Path, tmp_path: Path) -> None:
    import pickle

    (tmp_path / "model.safetensors").write_bytes(pickle.dumps({"a": 1}))
    is_refused(run("segment", trained / "raw.zarr", "-m", tmp_path, "-o", tmp_path / "o.zarr", "--cluster", "none"))


def test_a_plan_writes_nothing(place: Path) -> None:
    before = names(place)
    result = run("prepare", "raw.zarr", "labels.zarr", "--plan", "--set", "model.depth=2")
    assert result.exit_code == 0, result.stderr
    assert "patch_shape" in result.stdout
    assert names(place) == before


def test_json_is_one_object_with_the_counts_of_blocks(trained: Path, tmp_path: Path) -> None:
    import json

    out = tmp_path / "out.zarr"
    result = run("segment", trained / "raw.zarr", "-m", trained / "run", "-o", out, "--cluster", "none", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert {"blocks", "blocks_skipped", "retries", "quarantined", "seconds"} <= found.keys()
    assert project.tree(out)
