"""The page of a report: words, tables and pictures to HTML that asks for nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from unetflow.stages.report_style import STYLE

Html = str


def page(title: str, subtitle: Html, parts: Iterable[Html]) -> Html:
    """Return the whole document."""
    body = "\n".join(part for part in parts if part)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; '
        "style-src 'unsafe-inline'\">"
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>\n"
        f"<header><h1>{escape(title)}</h1><p>{subtitle}</p></header>\n<main>\n{body}\n</main></body></html>\n"
    )


def section(title: str, *parts: Html, lead: str = "") -> Html:
    """Return a headed part of the page; nothing where it holds nothing."""
    body = "\n".join(part for part in parts if part)
    said = f"<p>{escape(lead)}</p>" if lead else ""
    return f"<section><h2>{escape(title)}</h2>{said}{body}</section>" if body or lead else ""


def number(value: Any, unit: str = "", digits: int = 4) -> Html:
    """Return a number as people read it; the element's ``value`` is the number itself.

    Examples
    --------
    >>> number(1234567, "voxels")
    '<data value="1234567">1,234,567\u202fvoxels</data>'
    >>> number(0.98765432)
    '<data value="0.98765432">0.9877</data>'
    """
    if value is None:
        return "<span class=none>–</span>"
    if isinstance(value, int) or float(value).is_integer() and abs(value) < 1e15 and not isinstance(value, float):
        text = f"{value:,}"
    elif not math.isfinite(value):
        text = str(value)
    else:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
    shown = f"{text}\u202f{escape(unit)}" if unit else text
    return f'<data value="{value!r}">{shown}</data>'


def size(n_bytes: int | None) -> Html:
    """Return an amount of bytes."""
    from unetflow.memory import format_bytes

    return number(None) if n_bytes is None else f'<data value="{n_bytes}">{escape(format_bytes(n_bytes))}</data>'


def seconds(value: float | None) -> Html:
    """Return a time.

    Examples
    --------
    >>> seconds(3723.5)
    '<data value="3723.5">1 h 2 min</data>'
    """
    if value is None:
        return number(None)
    if value < 60:
        text = f"{value:.3g}\u202fs"
    elif value < 3600:
        text = f"{value // 60:.0f} min {value % 60:.0f} s"
    else:
        text = f"{value // 3600:.0f} h {value % 3600 // 60:.0f} min"
    return f'<data value="{value!r}">{text}</data>'


def text(value: Any) -> Html:
    """Return plain words, escaped."""
    if value is None or value == "":
        return number(None)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return escape(", ".join(str(v) for v in value)) or number(None)
    return escape(str(value))


def named(name: str, meaning: str) -> Html:
    """Return a name with what it means below it."""
    return f"{escape(name)}<small>{escape(meaning)}</small>"


def facts(rows: Mapping[str, Html]) -> Html:
    """Return names and values, side by side where there is room."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{value}</dd></div>" for name, value in rows.items())
    return f"<dl>{items}</dl>" if rows else ""


def key_figures(rows: Mapping[str, Html]) -> Html:
    """Return the few numbers that matter most."""
    items = "".join(f"<div><b>{value}</b><span>{escape(name)}</span></div>" for name, value in rows.items())
    return f'<div class="keys">{items}</div>' if rows else ""


def table(head: Sequence[str], rows: Sequence[Sequence[Html]], caption: str = "") -> Html:
    """Return a table that scrolls by itself where the screen is narrow; the first column names the row."""
    if not rows:
        return ""
    # Numbers stand flush right, words flush left, below their heads.
    sides = [" class=n" if any(row[i].startswith("<data") for row in rows) and i else "" for i in range(len(head))]
    names = "".join(f"<th{side}>{escape(name)}</th>" for name, side in zip(head, sides, strict=True))
    body = "".join(
        f"<tr><th>{first}</th>"
        + "".join(f"<td{side}>{cell}</td>" for cell, side in zip(rest, sides[1:], strict=True))
        + "</tr>"
        for first, *rest in rows
    )
    said = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    made = f"<table><thead><tr>{names}</tr></thead><tbody>{body}</tbody></table>"
    return f'<figure><div class="wide">{made}</div>{said}</figure>'


def plot(svg: Html, caption: str) -> Html:
    """Return a drawing with what is seen on it."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>" if svg else ""


def pictures(shown: Sequence[tuple[str, str]], caption: str, *, is_stacked: bool = False) -> Html:
    """Return pictures side by side or one below the other, each ``(title, data URI)``, with what is seen on them."""
    if not shown:
        return ""
    one = "".join(
        f'<div><img src="{uri}" alt="{escape(title)}: {escape(caption)}"><span>{escape(title)}</span></div>'
        for title, uri in shown
    )
    columns = 1 if is_stacked else min(4, len(shown))
    return f'<figure><div class="strip n{columns}">{one}</div><figcaption>{escape(caption)}</figcaption></figure>'


def passes(took: Mapping[str, Any], caption: str = "") -> Html:
    """Return a table of what each pass of a stage took."""
    rows = [[text(name), number(p["blocks"]), seconds(p["seconds"]), number(p["retries"])] for name, p in took.items()]
    return table(["pass", "blocks", "time", "retries"], rows, caption)


def folded_html(summary: str, content: Html) -> Html:
    """Return a part behind a line that opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def folded(summary: str, content: str) -> Html:
    """Return long text behind a line that opens it."""
    return folded_html(summary, f"<pre>{escape(content)}</pre>")
