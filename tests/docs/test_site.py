"""The site of docs/: it builds without a warning, asks for nothing from elsewhere, and what is made is up to date."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, ROOT, names_of_pages, text_of

MAKE = DOCS / "make"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def test_the_site_has_every_page_and_all_of_them_are_in_its_menu(site: Path) -> None:
    wanted = {page.replace(".md", ".html") for page in names_of_pages()}
    assert {path.name for path in site.glob("*.html")} == wanted | {"404.html"}
    menu = (site / "index.html").read_text()
    assert not [page for page in wanted if f'href="{page}"' not in menu]


def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    for page in site.glob("*.html"):
        text = page.read_text()
        loaded = re.findall(r"""<(?:script|img|link|iframe)[^>]*?(?:src|href)=["']?(https?:|//)""", text)
        assert not loaded, page.name


def test_the_reference_holds_every_public_function_with_its_parameters(site: Path) -> None:
    import unetflow

    text = (site / "reference.html").read_text()
    for name in set(unetflow.__all__) - {"__version__"}:
        assert f'id="unetflow.stages.{name}.{name}"' in text, name
    assert text.count("Parameters:") >= 10 and text.count("Returns:") >= 10


def test_the_page_of_settings_is_that_of_the_schema() -> None:
    done = subprocess.run([sys.executable, MAKE / "settings.py"], capture_output=True, text=True, check=True)
    assert done.stdout == text_of("settings.md"), "run: python docs/make/settings.py > docs/settings.md"


def test_the_figures_are_those_that_the_script_draws(tmp_path: Path) -> None:
    subprocess.run([sys.executable, MAKE / "figures.py", tmp_path], check=True)
    drawn = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert set(drawn) == {path.name for path in (DOCS / "figures").iterdir()}
    assert set(drawn) == set(re.findall(r"\(figures/([\w.]+)\)", text_of("mathematics.md")))
    for name, text in drawn.items():  # words and numbers; how lines are drawn is matplotlib's affair
        committed = (DOCS / "figures" / name).read_text()
        found, wanted = (re.findall(r">([^<>]*\w[^<>]*)</", svg) for svg in (text, committed))
        assert found == wanted, f"{name}: run: python docs/make/figures.py docs/figures"


def test_measured_figures_are_those_of_their_reports() -> None:
    rows = [line.strip("|").split("|") for line in text_of("peers.md").splitlines() if re.search(r"`[\w-]+` \|$", line)]
    assert len(rows) >= 10
    for _, ours, theirs, ratio, report in rows:
        lines = (ROOT / "benchmarks" / "reports" / f"{report.strip(' `')}.md").read_text().splitlines()
        numbers = [re.findall(r"\d+\.?\d*", cell)[-1] for cell in (ours, theirs, ratio)]
        found = [line for line in lines if all(re.search(rf"(?<![\d.]){re.escape(n)}(?![\d.])", line) for n in numbers)]
        assert found, (report, numbers)
