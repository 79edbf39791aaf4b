"""Blocks folded from their reports: totals, slowest, and the time of each worker."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from unetflow.stages import report_blocks, report_page
from unetflow.stages.report_blocks import fold_blocks
from unetflow.stages.report_plots import curves, timeline

Reports = list[tuple[int, dict[str, Any]]]


def made(n: int, n_workers: int = 2) -> Reports:
    rng = np.random.default_rng(n)
    return [
        (i, {"seconds": float(s), "began": 1000.0 + i, "worker": f"host:{i % n_workers}", "fetched": 10, "peak": i})
        for i, s in enumerate(rng.uniform(0.1, 1, n))
    ]


def fold(reports: Reports) -> report_blocks.Blocks:
    return fold_blocks(lambda: iter(reports))


def test_totals_slowest_and_workers_are_those_of_the_reports() -> None:
    reports = made(50, 3)
    blocks = fold(reports)
    assert (blocks.n, blocks.bytes_read) == (50, 500)
    assert blocks.seconds == pytest.approx(sum(r["seconds"] for _, r in reports))
    wanted = sorted(((r["seconds"], n) for n, r in reports), reverse=True)[:8]
    assert [(seconds, number) for seconds, number, _ in blocks.slowest] == wanted
    assert sum(w.blocks for w in blocks.workers.values()) == 50
    assert max(w.peak for w in blocks.workers.values()) == 49


def test_the_busy_share_of_a_worker_adds_up_to_its_seconds() -> None:
    blocks = fold(made(40, 2))
    width = (blocks.end - blocks.start) / 240
    for name, worker in blocks.workers.items():
        assert blocks.busy_share(name).sum() * width == pytest.approx(worker.seconds)
        assert blocks.busy_share(name).max() <= 1 + 1e-9


def test_many_blocks_are_kept_as_shares_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_blocks, "_MOST_BARS", 10)
    assert not fold(made(11)).bars
    assert sum(len(bars) for bars in fold(made(10)).bars.values()) == 10


def test_reports_of_an_older_version_have_no_time_line() -> None:
    blocks = fold([(0, {"seconds": 1.0}), (1, {"seconds": 2.0})])
    assert blocks.n == 2
    assert timeline(blocks) == ""


@pytest.mark.parametrize("n_workers", [1, 5, 40])
def test_a_drawing_holds_no_address_no_fixed_colour_and_whole_elements(n_workers: int) -> None:
    svg = timeline(fold(made(80, n_workers)))
    assert "http" not in svg
    assert "var(--c1)" in svg
    assert "#000" not in svg.replace("#0000a", "")
    Whole(svg)


def test_curves_name_themselves_and_leave_out_what_has_no_values() -> None:
    svg = curves({"training": ([1, 2], [3.0, 2.0]), "held out": ([], [])}, "step", "loss", mark=2)
    assert "step" in svg
    assert "held out" not in svg
    assert curves({"training": ([], [])}, "step", "loss") == ""


def test_words_of_users_cannot_become_elements_of_the_page() -> None:
    bad = "<script>alert(1)</script>"
    whole = report_page.page(
        bad, report_page.text(bad),
        [
            report_page.section(bad, report_page.facts({bad: report_page.text(bad)}), lead=bad),
            report_page.table([bad], [[report_page.text(bad)]], bad),
            report_page.pictures([(bad, "data:,")], f'"{bad}'),
            report_page.folded(bad, bad),
        ],
    )  # fmt: skip
    assert "<script" not in whole
    Whole(whole[whole.index("<html") :])


class Whole(HTMLParser):
    """Fails where elements do not close in order."""

    EMPTY = frozenset({"meta", "link", "img", "br", "path", "use"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        return

    def handle_endtag(self, tag: str) -> None:
        assert tag in self.EMPTY or self.open.pop() == tag


