"""The README's commands, as they stand there, on a folder of made slices."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.geometry import Box
from unetflow.numerics.tissue import tissue

README = Path(__file__).resolve().parents[2] / "README.md"
SHAPE = (3, 200, 200)
# The numbers that `init` proposes train for a quarter of an hour.
SMALL = ["--set", "train.steps=2", "--set", "prepare.patches=4", "--set", "model.base_channels=4"]


def commands() -> list[list[str]]:
    """Return the words of each unetflow command under "Your own data"."""
    section = README.read_text().split("## Your own data")[1].split("\n## ")[0]
    block = re.findall(r"```sh\n(.*?)```", section, re.S)[0]
    lines = [line.split("#")[0].strip() for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("unetflow")]


def test_the_commands_for_own_data_work_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, labels = tissue(Box.of_shape(SHAPE), SHAPE, seed=0, voxel_size=(0.05, 0.004, 0.004))
    for folder, planes in (("slices", raw), ("masks", labels.astype(np.uint16))):
        (tmp_path / folder).mkdir()
        for number, plane in enumerate(planes):
            Image.fromarray(plane).save(tmp_path / folder / f"{number:03d}.png")
    monkeypatch.chdir(tmp_path)
    found = commands()
    wanted = ["convert", "convert", "init", "prepare", "train", "segment", "evaluate", "verify", "report"]
    assert [words[0] for words in found] == wanted
    said = {}
    for words in found:
        extra = [] if words[0] in ("init", "report") else ["--cluster", "none"]
        extra += SMALL if words[0] in ("prepare", "train", "segment") else []
        result = CliRunner().invoke(app, [*words, *extra])
        assert result.exit_code == 0, (words, result.stderr)
        said[words[0]] = result.stdout
    assert "ap50" in said["evaluate"]
    assert Path("raw.unetflow.report.html").stat().st_size > 100_000
    shutil.rmtree("raw.unetflow.zarr")
    code = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)[0]
    reading = 'load_settings("unetflow.toml"'
    assert reading in code
    exec(code.replace(reading, f"{reading}, {[word for word in SMALL if word != '--set']}"), {})
    assert Path("raw.unetflow.zarr", "labels", "classes").is_dir()


def test_every_file_that_the_readme_names_is_there() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README.read_text()):
        assert (README.parent / target).exists(), target


def test_every_option_that_the_readme_names_exists() -> None:
    text = README.read_text()
    for option in ("--plan", "--json", "-v", "--collection", "--cluster"):
        assert option in text
        command = "convert" if option == "--collection" else "segment"
        assert option in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout
