"""Drawings of a report as SVG inside the page: curves, and what workers did when.

Colours are written as names that the page's style fills, so that one drawing serves light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from unetflow.stages.report_blocks import Blocks

# Colours that nobody would choose stand for the style's variables.
_INK, _SOFT, _LINE = "#010101", "#020202", "#030303"
_COLOURS = ("#0000a1", "#0000a2", "#0000a3", "#0000a4")
_VARIABLES = {_INK: "ink", _SOFT: "soft", _LINE: "line", **{c: f"c{i}" for i, c in enumerate(_COLOURS, 1)}}
_WIDE = 5.0  # inches; letters of 9 points are then readable on a phone
_MOST_ROWS = 24

Curve = tuple[Sequence[float], Sequence[float]]


def curves(series: Mapping[str, Curve], x: str, y: str, *, mark: float | None = None, log: bool = False) -> str:
    """Draw curves, each named at its end.

    Parameters
    ----------
    series : mapping of str to (x, y)
    x, y : str
        Names of the axes, with units.
    mark : float, optional
        Where on x a thin line stands.
    """
    known = {name: (xs, ys) for name, (xs, ys) in series.items() if len(xs)}
    if not known:
        return ""
    figure, axes = _begin(2.3)
    for (name, (xs, ys)), colour in zip(known.items(), _COLOURS, strict=False):
        axes.plot(xs, ys, color=colour, linewidth=1.8, marker="o" if len(xs) < 25 else "", markersize=3.2, label=name)
    if mark is not None:
        axes.axvline(mark, color=_SOFT, linewidth=0.9, linestyle=(0, (4, 3)))
    if log:
        axes.set_yscale("log")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    _legend(axes)
    return _svg(figure)


def timeline(blocks: Blocks) -> str:
    """Draw when each worker computed: a row a worker, or how many computed at once where they are many."""
    if not blocks.workers or blocks.end <= blocks.start:
        return ""
    names = sorted(blocks.workers)
    length, unit = _time_unit(blocks.end - blocks.start)
    scale = length / (blocks.end - blocks.start)
    edges = np.linspace(0, length, blocks.busy_share(names[0]).size + 1)
    if len(names) > _MOST_ROWS:
        figure, axes = _begin(2.4)
        busy = np.sum([blocks.busy_share(name) for name in names], axis=0)
        axes.stairs(busy, edges, fill=True, color=_COLOURS[0], alpha=0.75)
        axes.set_ylabel("workers that compute")
    else:
        figure, axes = _begin(0.9 + 0.3 * len(names))
        for row, name in enumerate(names):
            if blocks.bars:
                spans = [((a - blocks.start) * scale, (b - a) * scale) for a, b in blocks.bars.get(name, [])]
                axes.broken_barh(spans, (row - 0.36, 0.72), facecolors=_COLOURS[0], edgecolors="none", alpha=0.85)
            else:
                share = 0.72 * blocks.busy_share(name)
                axes.stairs(row - 0.36 + share, edges, baseline=row - 0.36, fill=True, color=_COLOURS[0], alpha=0.85)
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set_ylim(len(names) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
    axes.set_xlim(0, length)
    axes.set_xlabel(f"time since the first block, {unit}")
    return _svg(figure)


def _short(worker: str) -> str:
    return worker if len(worker) <= 18 else f"…{worker[-17:]}"


def _time_unit(seconds: float) -> tuple[float, str]:
    if seconds < 300:
        return seconds, "s"
    return (seconds / 60, "min") if seconds < 3 * 3600 else (seconds / 3600, "h")


def _begin(height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDE, height), layout="constrained")
    figure.patch.set_alpha(0)
    axes = figure.add_subplot()
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(_LINE)
    axes.tick_params(colors=_SOFT, labelsize=9, length=0)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(color=_SOFT, fontsize=9)
    axes.grid(visible=True, color=_LINE, linewidth=0.7)
    axes.set_axisbelow(True)
    return figure, axes


def _legend(axes: Axes) -> None:
    if len(axes.get_lines()) > 1:
        axes.legend(frameon=False, labelcolor=_INK, fontsize=9, loc="best")


def _svg(figure: Figure) -> str:
    """Write a figure, without what has no use inside of a page."""
    import matplotlib

    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "unetflow"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    svg = file.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r' id="[A-Za-z.]+[0-9A-Za-z]*_\d+"', "", svg)  # the same in each figure, and of no use
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg role="img" \1>', svg, count=1)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{name})")
    return svg.strip()
