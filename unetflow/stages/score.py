"""Score a segmentation against truth: `evaluate` for arrays and paths, without a project."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from unetflow.errors import InputError
from unetflow.stages.evaluate import evaluate
from unetflow.stages.in_memory import Source, as_path
from unetflow.stages.results import Scores
from unetflow.stages.work import Conditions


def score(
    segmentation: Source,
    truth: Source,
    *,
    kind: str = "instances",
    sections: bool = False,
    foreground: int | None = None,
    class_map: dict[int, int] | None = None,
    ignore: tuple[int, ...] = (),
    mask: str | None = None,
    client: Any = None,
    conditions: Conditions | None = None,
) -> Scores:
    """Score objects and classes against truth, with every score that `unetflow evaluate` gives.

    Parameters
    ----------
    segmentation, truth : array of int, path or URL
        Arrays ``([T, ][Z, ]Y, X)`` of one shape; an output of `segment`, or anything Zarr.
    kind : {"instances", "classes"}
        What the truth's values are.
    sections : bool
        Score each plane on its own.
    foreground : int, optional
        Objects are the components of this class, on both sides.
    class_map : dict, optional
        Truth value -> class.
    ignore : tuple of int
        Truth values that do not count.
    mask : path or URL, optional
        Where it is 0 nothing counts.
    client : distributed.Client, optional
        Where blocks run; None is a plain loop.
    conditions : Conditions, optional
        Client, progress, and when to stop, in one record.

    Returns
    -------
    Scores
        ``pixel_error``, ``iou``, ``dice``, ``adapted_rand_error``, ``voi_split``, ``seg``, ``ap50`` and so on;
        a score that is not defined is None.

    Examples
    --------
    >>> import numpy as np
    >>> truth = np.array([[1, 1, 0, 2, 2, 2]])
    >>> found = score(np.array([[5, 5, 0, 7, 7, 0]]), truth)
    >>> round(found["seg"], 4), found["ap50"], found["ap90"]
    (0.8333, 1.0, 0.3333333333333333)
    """
    from unetflow.settings import make_settings

    if kind not in ("instances", "classes"):
        raise InputError(f"the kind of a truth must be instances or classes, got '{kind}'")
    with tempfile.TemporaryDirectory(prefix=".unetflow-score-", dir=".") as folder:
        left = as_path(segmentation, Path(folder), "segmentation")
        right = as_path(truth, Path(folder), "truth")
        table = {"raw": right, "labels": right, "kind": kind, "ignore": tuple(ignore), "class_map": class_map}
        settings = make_settings({"data": [table]} if ignore or kind == "classes" else {})
        return evaluate(
            settings, left, right, client, sections=sections, foreground=foreground, class_map=class_map, mask=mask,
            conditions=conditions,
        )  # fmt: skip
