"""Report: one HTML file that tells of a run or an output, and asks for nothing from elsewhere."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from unetflow.errors import InputError
from unetflow.stages.results import ReportResult


def report(
    path: str | os.PathLike[str], *, out: str | os.PathLike[str] | None = None, url: str | None = None
) -> ReportResult:
    """Write the report of a run, or of an output of `segment` with the run that made its model.

    Parameters
    ----------
    path : path
        A run folder, or an output of `segment` (path or URL).
    out : path, optional
        The HTML file; absent: ``RUN/report.html``, or ``NAME.report.html`` beside the output (in the current
        folder where that lies behind a URL).
    url : str, optional
        Where a browser reads the output from; absent: ``path`` if that is a URL.

    Returns
    -------
    ReportResult
        ``report``, the file, and its ``bytes``; for an output with a URL also ``neuroglancer``, a link that opens it
        there, or one for each image.

    Raises
    ------
    InputError
        If there is neither a run nor an output, or ``url`` is none.
    """
    from unetflow.stages import report_page as page
    from unetflow.stages.neuroglancer import links
    from unetflow.stages.report_output import of_output
    from unetflow.stages.report_run import is_run, of_run
    from unetflow.stages.request import read_record
    from unetflow.storage.atomic import write_whole
    from unetflow.storage.store import is_url, normalise

    place = normalise(path)
    if url is not None and not is_url(url):
        raise InputError(f"a browser reads an output from a URL, got {url}; give https://, s3:// or gs://")
    record = read_record(place)
    if url is None and is_url(place):
        url = place
    opened: dict[str, str] = {}
    if record is not None:
        opened = links(record, url) if url is not None else {}
        target = Path(out) if out else Path(_stem(place) if is_url(place) else f"{_stem(place, whole=True)}")
        target = target if out else target.with_name(f"{target.name}.report.html")
        subtitle, keys, sections = of_output(record)
        run = Path((record.request or {}).get("run", ""))
        if (record.request or {}).get("run") and is_run(run) and _is_model_of(record.request or {}, run):
            sections += of_run(run)[2]
        title = _stem(place)
    elif not is_url(place) and is_run(Path(place)):
        target = Path(out) if out else Path(place) / "report.html"
        subtitle, keys, sections = of_run(Path(place))
        title = Path(place).name
    else:
        raise InputError(
            f"a report needs a run folder or an output of unetflow segment, got neither at '{place}'; name one of them"
        )
    content = page.page(title, subtitle, [keys, *sections]).encode()
    write_whole(target.absolute(), memoryview(content))
    shown: str | dict[str, str] | None = opened.get("") or opened or None
    found: ReportResult = {"report": str(target), "bytes": len(content)}
    return {**found, "neuroglancer": shown} if shown else found


def _is_model_of(request: dict[str, Any], run: Path) -> bool:
    return Path(request.get("model", "")).parent == run


def _stem(path: str, *, whole: bool = False) -> str:
    """Return the name, or the whole path, of an output without ``.zarr``."""
    shown = path.rstrip("/") if whole else path.rstrip("/").rpartition("/")[2]
    return shown.removesuffix(".zarr") or path
