"""The part of a report that tells of a run: its data, its patches, its training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unetflow.stages import report_page as page
from unetflow.stages.report_plots import Curve, curves
from unetflow.stages.report_previews import encode_file

Html = page.Html
_N_PREVIEWS = 3


def of_run(folder: Path) -> tuple[Html, Html, list[Html]]:
    """Return subtitle, key figures and sections; no sections where nothing of a run is there."""
    facts, model, rows = _facts(folder), _model(folder), _metrics(folder)
    passes = _passes(folder)
    return (
        f"A run of unetflow in {page.text(folder)}",
        page.key_figures(_keys(facts, model, rows)),
        [_training(model, rows), _data(facts), _previews(folder), _network(model), _course(passes)],
    )


def is_run(folder: Path) -> bool:
    """Say whether a run was begun in a folder."""
    return any((folder / name).exists() for name in ("dataset.zarr", "model.safetensors", "metrics.csv"))


def _facts(folder: Path) -> dict[str, Any]:
    from unetflow.storage.ngff import get_attributes

    path = folder / "dataset.zarr"
    return dict(get_attributes(path).get("unetflow") or {}) if (path / "zarr.json").is_file() else {}


def _model(folder: Path) -> dict[str, Any]:
    from safetensors import safe_open

    path = folder / "model.safetensors"
    if not path.is_file():
        return {}
    with safe_open(path, framework="numpy") as file:
        return dict(json.loads((file.metadata() or {}).get("unetflow", "{}")))


def _metrics(folder: Path) -> list[dict[str, float | None]]:
    from unetflow.nn.history import read_history

    return [{key: float(v) if v else None for key, v in row.items()} for row in read_history(folder / "metrics.csv")]


def _passes(folder: Path) -> dict[str, Any]:
    from unetflow.storage.ledger import read_ledger

    found = read_ledger(folder / ".unetflow" / "prepare")
    return {} if found is None else dict(found[1].value("passes") or {})


def _keys(facts: dict[str, Any], model: dict[str, Any], rows: list[dict[str, float | None]]) -> dict[str, Html]:
    keys = {}
    if facts:
        keys["training patches"] = page.number(facts["patches"].get("train"))
    if rows:
        keys["steps"] = page.number(int(rows[-1]["step"] or 0))
    scores = {k: v for k, v in (model.get("scores") or {}).items() if isinstance(v, int | float)}
    if "step" in scores:
        keys["best step"] = page.number(int(scores["step"]))
    best = [row for row in rows if row["step"] == scores.get("step")]
    for name in ("validation_loss", "dice"):
        value = best[0].get(name) if best else None
        if value is not None:
            keys[f"{name.replace('_', ' ')}, best step"] = page.number(value)
    return keys


def _curve(rows: list[dict[str, float | None]], name: str) -> Curve:
    known = [(row["step"], row[name]) for row in rows if row.get(name) is not None and row["step"] is not None]
    return [float(x or 0) for x, _ in known], [float(y or 0) for _, y in known]


def _training(model: dict[str, Any], rows: list[dict[str, float | None]]) -> Html:
    if not rows:
        return ""
    best = (model.get("scores") or {}).get("step")
    loss = {"training": _curve(rows, "loss"), "held out": _curve(rows, "validation_loss")}
    good = {name: _curve(rows, name) for name in ("dice", "iou")}
    bad = {n.replace("_", " "): _curve(rows, n) for n in ("pixel_error", "adapted_rand_error")}
    mark = " The dashed line is the step whose weights were kept." if best is not None else ""
    columns = ["step", "loss", "validation_loss", "pixel_error", "dice", "iou", "learning_rate", "seconds"]
    shown = rows if len(rows) <= 12 else [*rows[:: max(1, len(rows) // 10)], rows[-1]]
    body = [
        [page.number(int(row["step"] or 0)), *(page.number(row.get(name)) for name in columns[1:])] for row in shown
    ]
    return page.section(
        "Training",
        page.plot(curves(loss, "step", "loss", mark=best), f"Weighted loss of training and held-out patches.{mark}"),
        page.plot(curves(good, "step", "share", mark=best), "Dice and IoU of held-out patches; 1 is best."),
        page.plot(curves(bad, "step", "error", mark=best), "Errors of held-out patches; 0 is best."),
        page.table(
            [name.replace("_", " ") for name in columns], body, "From metrics.csv; seconds since the row before."
        ),
    )


def _data(facts: dict[str, Any]) -> Html:
    if not facts:
        return ""
    counts, weights = facts["class_counts"], facts["class_weights"]
    total = sum(counts.values()) or 1
    classes = [
        [f"class {k}", page.number(n), page.number(100 * n / total, "%", 3), page.number(w)]
        for (k, n), w in zip(counts.items(), weights, strict=False)
    ]
    tables = [
        [page.text(t[key]) for key in ("raw", "labels", "kind", "role")] + [page.text(t.get("roi") or "all")]
        for t in facts["settings"].get("data", [])
    ]
    patches = facts["patches"]
    rows = {
        "axes": page.text(facts["axes"]),
        "voxel size": page.text(" × ".join(f"{v:g}" for v in facts["voxel_size"])) + " µm",
        "stored as": page.text(facts["dtype"]),
        "patches": page.number(patches.get("train")) + " to train, "
        + page.number(patches.get("validation", 0)) + " held out",
        "patch": page.text(" × ".join(map(str, facts["patch_shape"]))) + " in, "
        + page.text(" × ".join(map(str, facts["output_shape"]))) + " out",
        "normalised by": page.text(f"{facts['normalise']}, per {facts['normalise_per']}"),
        "seed": page.number(facts["seed"]),
        "versions": page.text([f"{k} {v}" for k, v in facts["versions"].items()]),
    }  # fmt: skip
    return page.section(
        "Training data",
        page.table(["raw", "labels", "kind", "role", "region"], tables),
        page.facts(rows),
        page.table(["", "voxels", "share", "weight"], classes, "Classes in the labels; rare ones weigh more."),
    )


def _previews(folder: Path) -> Html:
    place = folder / "previews"
    last = sorted(place.glob("validation-*.png"))[-1:]
    groups = (
        (last, "Answers on held-out patches after the last validation: red was missed, blue is not there."),
        (sorted(place.glob("weights-*.png"))[:1], "Weights of the loss: rare classes and gaps weigh more."),
        (sorted(place.glob("patch-*.png"))[:_N_PREVIEWS], "Training patches as they lie in the volume, and deformed."),
    )
    parts = [
        page.pictures([(file.stem, encode_file(file)) for file in files], said, is_stacked=True)
        for files, said in groups
    ]
    return page.section("What the network learns from", *parts)


def _network(model: dict[str, Any]) -> Html:
    if not model:
        return ""
    a = model["architecture"]
    train = (model.get("settings") or {}).get("train") or {}
    names = ("optimizer", "learning_rate", "schedule", "batch_size", "steps", "loss", "precision")
    network = f"{a['dims']}-D U-Net, depth {a['depth']}, {a['base_channels']} channels at its first level"
    rows = {
        "network": page.text(network),
        "channels in and out": page.text(f"{a['in_channels']} and {a['out_channels']}"),
        "padding": page.text(a["padding"]),
        "norm": page.text(a["norm"]),
        "head": page.text(a["head"]),
        **{name.replace("_", " "): page.text(train[name]) for name in names if train.get(name) is not None},
    }
    return page.section("Network and recipe", page.facts(rows))


def _course(passes: dict[str, Any]) -> Html:
    return page.section("How prepare went", page.passes(passes))
