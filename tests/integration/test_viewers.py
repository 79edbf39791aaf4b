"""Outputs in viewers: the link into neuroglancer, and the code of docs/viewers.md, as it stands there."""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote
from urllib.request import Request, urlopen

import project
import pytest
import tifffile
import zarr
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.stages.neuroglancer import VIEWER
from unetflow.stages.segment import segment
from unetflow.storage.volume import open_volume

PAGE = (Path(__file__).parents[2] / "docs" / "viewers.md").read_text()
ROI = "1:3,8:60,4:60"


def code(word: str) -> str:
    """Return the block of Python on the page that has a word in it."""
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if word in block)
    return str(block)


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("viewed")
    settings = project.settings_in(trained)
    segment(settings, str(trained / "raw.zarr"), out=str(folder / "raw.unetflow.zarr"), roi=ROI)
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """The server of the page, on a free port."""
    names: dict[str, Any] = {}
    exec(code("ThreadingHTTPServer").replace("9000", "0").replace('directory="."', f"directory={str(folder)!r}"), names)
    server = names["server"]
    server.RequestHandlerClass.func.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def state(address: str, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the link of a report says."""
    out = tmp_path_factory.mktemp("report") / "report.html"
    words = ["report", str(folder / "raw.unetflow.zarr"), "--url", f"{address}/raw.unetflow.zarr", "-o", str(out)]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.stderr
    link = json.loads(result.stdout)["neuroglancer"]
    assert link.startswith(VIEWER)
    assert not re.search(r'[\s"<>]', link), "a terminal would cut it"
    found: dict[str, Any] = json.loads(unquote(link.removeprefix(VIEWER)))
    return found


def test_each_layer_of_the_link_is_an_image_of_the_output(state: dict[str, Any], address: str, folder: Path) -> None:
    layers = {layer["name"]: layer for layer in state["layers"]}
    assert {n: layer["type"] for n, layer in layers.items()} == {
        "probabilities": "image", "classes": "segmentation", "instances": "segmentation",
    }  # fmt: skip
    assert [n for n, layer in layers.items() if layer.get("visible", True)] == ["probabilities", "instances"]
    for layer in layers.values():
        place, _, form = layer["source"].partition("/|")
        assert form == "zarr:"
        with urlopen(f"{place}/zarr.json") as answer:
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert "multiscales" in json.load(answer)["attributes"]["ome"]
        there, here = open_volume(place), open_volume(str(folder / place.removeprefix(f"{address}/")))
        assert (there.read(there.box) == here.read(here.box)).all()


def test_the_link_looks_at_the_middle_of_the_output(state: dict[str, Any], folder: Path) -> None:
    volume = open_volume(str(folder / "raw.unetflow.zarr"))
    assert list(state["dimensions"]) == ["x", "y", "z"]
    scales = [scale for scale, unit in state["dimensions"].values() if unit == "m"]
    assert scales == pytest.approx([size * 1e-6 for size in reversed(volume.voxel_size)])
    assert state["position"] == [32.5, 34.5, 2.5], "the roi's, in voxels of the whole volume"
    probabilities = next(layer for layer in state["layers"] if layer["name"] == "probabilities")
    assert (probabilities["localDimensions"], probabilities["localPosition"]) == ({"c'": [1, ""]}, [1])
    assert state["layout"] == "4panel"


def test_a_report_of_a_folder_has_no_link(folder: Path, tmp_path: Path) -> None:
    words = ["report", str(folder / "raw.unetflow.zarr"), "-o", str(tmp_path / "r.html"), "--json"]
    assert "neuroglancer" not in json.loads(CliRunner().invoke(app, words).stdout)
    refused = CliRunner().invoke(app, [*words, "--url", "out.zarr"])
    assert (refused.exit_code, "from a URL, got out.zarr" in refused.stderr) == (2, True)


def test_the_server_of_the_page_gives_parts_of_files(address: str, folder: Path) -> None:
    whole = (folder / "raw.unetflow.zarr" / "zarr.json").read_bytes()
    for asked, wanted in {"2-9": whole[2:10], "-5": whole[-5:], "7-": whole[7:]}.items():
        request = Request(f"{address}/raw.unetflow.zarr/zarr.json", headers={"Range": f"bytes={asked}"})
        with urlopen(request) as answer:
            assert (answer.status, answer.read()) == (206, wanted)


def test_the_code_for_napari_and_fiji_runs_as_it_stands(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ome-zarr, as in test_readers
        exec(code("ome_zarr.io"), {})
    assert capsys.readouterr().out == "['c', 'z', 'y', 'x'] (2, 2, 52, 56) uint8\n"
    exec(code("tifffile"), {})
    objects = zarr.open_array(folder / "raw.unetflow.zarr" / "labels" / "instances" / "0", mode="r")
    assert (tifffile.imread(folder / "objects.tif") == objects[...]).all()
