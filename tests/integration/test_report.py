"""Report: one file that tells of a run or an output in the store's own numbers, and asks for nothing."""

from __future__ import annotations

import asyncio
import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import project
import pytest
import zarr
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.stages.evaluate import evaluate
from unetflow.stages.report import report
from unetflow.stages.segment import segment
from unetflow.storage.ledger import read_ledger

ATTRIBUTES_THAT_LOAD = {"src", "href", "srcset", "data", "action", "poster", "background", "xlink:href"}


class Reader(HTMLParser):
    """Collects words, values by the name of their row, and what would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.rows: dict[str, list[float]] = {}
        self.words, self._row, self._name, self._is_name = "", "", "", False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.loads += [v for k, v in attrs if k in ATTRIBUTES_THAT_LOAD and v]
        if tag in ("script", "link", "iframe", "object", "embed") and given.get("href") != "data:,":
            self.loads.append(f"<{tag}>")
        if tag in ("tr", "dl", "b"):
            self._name = ""
        self._is_name = tag in ("th", "dt") or (self._is_name and tag not in ("small", "td", "dd"))
        if tag in ("th", "dt"):
            self._name = ""
        if tag == "data":
            self.rows.setdefault(self._name.strip(), []).append(float(given["value"] or "nan"))

    def handle_data(self, data: str) -> None:
        self.words += data
        if self._is_name:
            self._name += data


@pytest.fixture(scope="module")
def output(trained: Path) -> Path:
    """An output with its scores and its report."""
    settings = project.settings_in(trained)
    out = trained / "told.zarr"
    segment(settings, str(trained / "raw.zarr"), out=str(out))
    evaluate(settings, str(out), str(trained / "labels.zarr"), sections=True)
    return out


@pytest.fixture(scope="module")
def page(output: Path) -> Path:
    result = CliRunner().invoke(app, ["report", str(output), "--json"])
    assert result.exit_code == 0, result.stderr
    path = Path(json.loads(result.stdout)["report"])
    assert path == output.with_name("told.report.html")
    assert path.stat().st_size == json.loads(result.stdout)["bytes"]
    return path


def test_the_file_asks_for_nothing_from_elsewhere(page: Path) -> None:
    text = page.read_text()
    found = Reader(text)
    assert all(value.startswith(("data:", "#")) for value in found.loads), found.loads
    assert "http:" not in text
    assert "https:" not in text
    assert not re.search(r"url\((?!#)", text)
    assert text.count("data:image/") >= 8, "pictures are missing"
    assert text.count("<svg") == 4, "the timeline and three pairs of curves"


def test_the_numbers_are_those_of_the_store(page: Path, output: Path, trained: Path) -> None:
    found = Reader(page.read_text())
    opened = read_ledger(output / ".unetflow" / "segment")
    assert opened is not None
    ledger = opened[1]
    for name, took in ledger.value("passes").items():
        # Passes of prepare have some of the same names; they come later.
        assert found.rows[name][:3] == [took["blocks"], took["seconds"], took["retries"]]
    cost = ledger.value("result")["cost"]
    assert found.rows["chunks fetched"] == [cost["planned"]["chunks"], cost["real"]["chunks"]]
    assert found.rows["bytes read, decoded"] == [cost["planned"]["bytes_read"], cost["real"]["bytes_read"]]
    kept = json.loads((output / ".unetflow" / "scores.json").read_text())["evaluations"][0]["scores"]
    for name in ("pixel_error", "adapted_rand_error", "seg", "ap50", "warping_error"):
        assert found.rows[name] == [kept[name]]
    assert found.rows["iou of class 1"] == [kept["iou"]["1"]]
    took = {number: report["seconds"] for number, report in ledger.reports("predict")}
    assert [found.rows[str(number)][0] for number in took] == list(took.values())
    with (trained / "run" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    columns = ("loss", "validation_loss", "pixel_error", "dice", "iou", "learning_rate", "seconds")
    assert all([float(row[c]) for c in columns] in _chunks(found.rows[row["step"]], len(columns)) for row in rows)
    n_objects = int(zarr.open_array(output / "labels" / "instances" / "0")[:].max())
    assert f"{n_objects:,}objects" in found.words
    for words in (str(trained / "raw.zarr"), "Where most is wrong", f"unetflow verify {output}"):
        assert words in found.words


def _chunks(values: list[float], length: int) -> list[list[float]]:
    return [values[i : i + length] for i in range(len(values))]


def test_scores_are_kept_once_a_kind_and_fall_with_the_output_they_are_of(output: Path, trained: Path) -> None:
    settings = project.settings_in(trained)
    out = trained / "kept.zarr"
    segment(settings, str(trained / "raw.zarr"), out=str(out))
    for sections in (True, False, True):
        evaluate(settings, str(out), str(trained / "labels.zarr"), sections=sections)
    kept = json.loads((out / ".unetflow" / "scores.json").read_text())["evaluations"]
    assert sorted(e["asked"]["sections"] for e in kept) == [False, True]
    assert "Scores" in Reader(Path(report(out)["report"]).read_text()).words
    other = project.settings_in(trained, segment={"threshold": 0.9})
    segment(other, str(trained / "raw.zarr"), out=str(out), overwrite=True)
    assert "Scores" not in Reader(Path(report(out)["report"]).read_text()).words


def test_a_run_has_a_report_of_its_own(trained: Path) -> None:
    found = report(trained / "run", out=trained / "run.html")
    read = Reader((trained / "run.html").read_text())
    assert found["report"] == str(trained / "run.html")
    for word in ("Training", "Network and recipe", "2-D U-Net, depth 2, 4 channels", "8 to train"):
        assert word in read.words
    facts = dict(zarr.open_group(trained / "run" / "dataset.zarr").attrs)["unetflow"]
    assert read.rows["class 1"][0] == facts["class_counts"]["1"]


def test_an_output_whose_inputs_and_run_are_gone_is_still_told(output: Path, trained: Path, tmp_path: Path) -> None:
    raw, run = trained / "raw.zarr", trained / "run"
    away = [(raw, raw.with_name("raw-away")), (run, run.with_name("run-away"))]
    for here, there in away:
        here.rename(there)
    try:
        report(output, out=tmp_path / "alone.html")
    finally:
        for here, there in away:
            there.rename(here)
    words = Reader((tmp_path / "alone.html").read_text()).words
    assert "objects" in words
    assert "Network and recipe" not in words


def test_a_quarantined_block_is_told_with_its_error(output: Path, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(output, tmp_path / "copy.zarr"))
    opened = read_ledger(copy / ".unetflow" / "segment")
    assert opened is not None
    opened[1].quarantine("predict", 1, {"error": "ValueError: <odd> voxels", "traceback": "Traceback & more"})
    opened[1].close()
    words = Reader(Path(report(copy)["report"]).read_text()).words
    assert "predict, block 1: ValueError: <odd> voxels" in words
    assert "Traceback & more" in words


def test_what_is_neither_run_nor_output_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "neither" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.browser
def test_a_browser_shows_it_wide_and_narrow_light_and_dark(page: Path, output: Path, tmp_path: Path) -> None:
    if browser.find_chromium() is None:
        pytest.fail("a Chromium must be installed; on Debian: apt-get install chromium")
    texts = asyncio.run(browser.with_page(tmp_path / "profile", lambda p: _look(p, page, tmp_path)))
    values = Reader(page.read_text()).rows
    shown = {float(value) for value in texts["values"]}
    assert shown == {v for row in values.values() for v in row}


async def _look(seen: browser.Page, path: Path, folder: Path) -> dict[str, Any]:
    await seen.open(path)
    papers = set()
    for scheme in ("light", "dark"):
        for width in (1200, 360):
            await seen.look(width, 800, scheme)
            assert await seen.ask("document.documentElement.scrollWidth") <= width, "it scrolls sideways"
            await seen.screenshot(folder / f"{scheme}-{width}.png")
        paper = await seen.ask("getComputedStyle(document.body).backgroundColor")
        ink = await seen.ask("getComputedStyle(document.body).color")
        assert _contrast(paper, ink) > 7
        papers.add(paper)
        curve = "document.querySelector('svg path[style*=\"stroke: var(--c1)\"]')"
        line = await seen.ask(f"getComputedStyle({curve}).stroke")
        assert line.startswith("rgb"), line
    assert len(papers) == 2, "light and dark look the same"
    broken = await seen.ask("[...document.images].filter(i => !i.complete || !i.naturalWidth).length")
    assert broken == 0
    assert [r for r in seen.requests if not r.startswith("data:")] == [path.as_uri()]
    assert seen.errors == []
    return {"values": await seen.ask("[...document.querySelectorAll('data')].map(d => d.value)")}


def _contrast(one: str, other: str) -> float:
    """Return the ratio of luminances of two colours, as the WCAG has it."""

    def luminance(colour: str) -> float:
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)[:3]]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)
