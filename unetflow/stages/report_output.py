"""The part of a report that tells of an output of `segment`."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box
from unetflow.stages import report_page as page
from unetflow.stages.kept_scores import Evaluation, read_scores
from unetflow.stages.output_arrays import image_names, levels_of
from unetflow.stages.pieces import Pieces
from unetflow.stages.previews import where
from unetflow.stages.report_blocks import Blocks, fold_blocks
from unetflow.stages.report_plots import timeline
from unetflow.stages.report_previews import DASH, Sight, middle_detail, raw_levels, worst_window
from unetflow.stages.request import Record

Html = page.Html
_MOST_IMAGES, _MOST_FAILED = 3, 50

SCORES = {
    "pixel_error": "voxels of another class than the truth, a share",
    "adapted_rand_error": "0 is best; merges and splits of objects, by voxels",
    "rand_precision": "falls with merges",
    "rand_recall": "falls with splits",
    "voi_split": "bits; rises with splits",
    "voi_merge": "bits; rises with merges",
    "seg": "mean overlap of true objects with the object that covers most of them",
    "ap50": "objects found at an overlap of at least one half",
    "map": "the mean over overlaps from 0.5 to 0.9",
    "warping_error": "errors of topology, a share of voxels",
}


def of_output(record: Record) -> tuple[Html, Html, list[Html]]:
    """Return subtitle, key figures and sections."""
    request = record.request or {}
    blocks = fold_blocks(lambda: record.ledger.reports("predict"))
    evaluations = read_scores(record)
    result = record.ledger.value("result") or {}
    return (
        _subtitle(record, request),
        page.key_figures(_keys(record, request, result, evaluations)),
        [
            _pictures(record, request, evaluations),
            _scores(evaluations),
            _asked(record, request),
            _course(record, request, blocks),
            _cost(result, request),
            _quarantine(record),
            _provenance(record),
        ],
    )


def _voxels(request: dict[str, Any]) -> int:
    return sum(math.prod(image["shape"]) for image in request.get("images", {}).values())


def _subtitle(record: Record, request: dict[str, Any]) -> Html:
    images = request.get("images", {})
    if not images:
        return f"An output of unetflow segment, {page.text(record.out)}"
    first = next(iter(images.values()))
    shape = " × ".join(str(n) for n in first["shape"])
    size = " × ".join(f"{v:g}" for v in first["voxel_size"])
    unit = {"micrometer": "µm", None: "µm"}.get(first["unit"], first["unit"])
    what = f"{shape} voxels of {size} {unit}" if len(images) == 1 else f"{len(images)} images"
    return f"Segmentation of {page.text(request['volume'].rpartition('/')[2])}, {page.text(what)}"


def _keys(
    record: Record, request: dict[str, Any], result: dict[str, Any], evaluations: list[Evaluation]
) -> dict[str, Html]:
    keys: dict[str, Html] = {}
    if "objects" in result:
        keys["objects"] = page.number(result["objects"])
    scores = evaluations[-1]["scores"] if evaluations else {}
    for name, title in (("ap50", "AP at overlap 0.5"), ("seg", "SEG"), ("pixel_error", "pixel error")):
        if scores.get(name) is not None:
            keys[title] = page.number(scores[name])
    if "seam_score" in result:
        keys["seam score (1 is none)"] = page.number(result["seam_score"])
    took = (record.ledger.value("passes") or {}).get("predict", {}).get("seconds")
    if took:
        keys["to predict"] = page.seconds(took)
        if _voxels(request):
            keys["voxels a second"] = page.number(round(_voxels(request) / took))
    return keys


def _pictures(record: Record, request: dict[str, Any], evaluations: list[Evaluation]) -> Html:
    names = image_names(record.out)
    sight_of = cache(lambda name: _sight(record, request, name))
    parts = []
    for name in names[:_MOST_IMAGES]:
        sight = sight_of(name)
        if not sight.arrays:
            continue
        title = f"{name}: " if name else ""
        shown, place = sight.overview()
        said = "Where probability is white the foreground is certain; each object has a colour of its own."
        parts.append(page.pictures(shown, f"{title or 'T'}{place if title else place[1:]}. {said}"))
        if not evaluations and max(sight.top.shape[-2:]) > 256:
            shown, place = sight.detail(middle_detail(sight.top.shape))
            parts.append(page.pictures(shown, f"{title}The middle at full resolution, {place}."))
    for key, said in (("worst", "Where most is wrong"), ("best", "Where least is wrong")):
        for at in (evaluations[-1]["places"][key] if evaluations else [])[:2]:
            parts.append(_place(sight_of(at["image"]), at, said))
    lead = f"{len(names)} images; the first {_MOST_IMAGES} are shown." if len(names) > _MOST_IMAGES else ""
    return page.section("Pictures", *parts, lead=lead)


def _sight(record: Record, request: dict[str, Any], name: str) -> Sight:
    folder = f"{record.out}/{name}" if name else record.out
    arrays = levels_of(folder)
    image = request.get("images", {}).get(name)
    raw = raw_levels(request, name) if image else []
    start = tuple(image["start"]) if image else (0,) * next(iter(arrays.values()))[0].ndim
    return Sight(raw, start, arrays)


def _place(sight: Sight, at: dict[str, Any], said: str) -> Html:
    from unetflow.storage.volume import open_volume

    try:
        truth = open_volume(at["truth"], axes=at["truth_axes"])
    except (InputError, OSError):
        return ""
    labels = next(v for name, v in sight.arrays.items() if name.startswith("labels/"))[0]
    box, offset = Box(tuple(at["start"]), tuple(at["stop"])), tuple(at["offset"])
    window = worst_window(labels, truth, offset, box, is_best="least" in said)
    shown, place = sight.detail(window, (truth, offset, at["kind"] == "instances"))
    return page.pictures(shown, f"{said}: {place}.")


def _scores(evaluations: list[Evaluation]) -> Html:
    parts = []
    for number, evaluation in enumerate(reversed(evaluations)):
        scores, asked = evaluation["scores"], evaluation["asked"]
        rows = [
            [page.named(name, said), page.number(scores[name])]
            for name, said in SCORES.items()
            if scores.get(name) is not None
        ]
        for key in ("iou", "dice"):
            rows += [[f"{key} of class {k}", page.number(v)] for k, v in (scores.get(key) or {}).items()]
        how = "each plane or image on its own" if asked["sections"] else "the whole volume at once"
        options = [key for key in ("foreground", "class_map", "mask") if asked[key] is not None]
        extra = "".join(f", {key.replace('_', ' ')} {asked[key]}" for key in options)
        caption = f"Against {asked['truth']}; {how}{extra}."
        made = page.table(["score", "value"], rows, caption)
        parts.append(made if number == 0 else page.folded_html("an earlier evaluation", made))
    return page.section("Scores", *parts)


def _asked(record: Record, request: dict[str, Any]) -> Html:
    settings = request.get("segment", record.fingerprint.get("settings", {}))
    tile: list[int] = next(iter(record.fingerprint.get("tile", {}).values()), [])
    objects = f"{settings.get('instances')}, neighbours by {settings.get('connectivity')}"
    rows = {
        "volume": page.text(request.get("volume")),
        "model": page.text(request.get("model")),
        "region": page.text(record.fingerprint.get("roi") or "all of it"),
        "mask": page.text(request.get("mask") or "none"),
        "outputs": page.text(settings.get("outputs")),
        "stored as": page.text(settings.get("dtype")),
        "threshold": page.number(settings.get("threshold")),
        "objects by": page.text(objects),
        "smallest object": page.number(settings.get("min_size"), "voxels"),
        "mode": page.text(settings.get("mode")) + (", averaged over flips and turns" if settings.get("tta") else ""),
        "tile": page.text(" × ".join(str(n) for n in tile)) + " voxels",
        "seed": page.number(record.fingerprint.get("seed")),
    }
    return page.section("What was asked", page.facts(rows))


def _course(record: Record, request: dict[str, Any], blocks: Blocks) -> Html:
    passes = record.ledger.value("passes") or {}
    drawn = timeline(blocks)
    n_workers = len(blocks.workers)
    seen = f"{blocks.n:,} blocks of the predict pass on {n_workers:,} worker{'s' * (n_workers != 1)}."
    caption = f"When workers computed: {seen} Gaps are waiting: for data, for other workers, or between two starts."
    return page.section(
        "How it went",
        page.passes(passes, "Times add up over the starts that finished a pass."),
        page.plot(drawn, caption),
        _workers(blocks),
        _slowest(request, blocks),
    )


def _workers(blocks: Blocks) -> Html:
    rows = [
        [
            page.text(name), page.number(w.blocks), page.seconds(round(w.seconds, 3)), page.size(w.bytes_read),
            page.size(w.peak),
        ]
        for name, w in sorted(blocks.workers.items(), key=lambda item: -item[1].seconds)[:24]
    ]
    return page.table(["worker", "blocks", "computed", "read", "peak memory"], rows, "Workers by host and process.")


def _slowest(request: dict[str, Any], blocks: Blocks) -> Html:
    images = request.get("images", {})
    pieces = Pieces(tuple(BlockGrid(Box.of_shape(i["shape"]), tuple(i["block"])) for i in images.values()))
    names, rows = list(images), []
    for took, number, worker in blocks.slowest:
        place: Html = ""
        if number < len(pieces):
            index, here = pieces.locate(number)
            place = page.text(f"{names[index]} ".lstrip() + where(images[names[index]]["axes"], here.inner, DASH))
        times = page.number(round(took / blocks.mean, 2), "×") if blocks.mean else ""
        rows.append([page.number(number), place, page.seconds(took), times, page.text(worker)])
    return page.table(
        ["block", "voxels", "computed", "of the mean", "worker"], rows, "The slowest blocks of the predict pass."
    )


def _cost(result: dict[str, Any], request: dict[str, Any]) -> Html:
    cost = result.get("cost")
    if not cost:
        return ""
    planned, real = cost["planned"], cost["real"]
    rows = [
        ["bytes read, decoded", page.size(planned["bytes_read"]), page.size(real["bytes_read"])],
        ["chunks fetched", page.number(planned["chunks"]), page.number(real["chunks"])],
        ["memory of a worker", page.size(planned["memory_worker"]), page.size(real["memory_worker"])],
        ["voxels computed for each kept", page.number(planned["work_factor"]), page.number(real["work_factor"])],
        ["time of the predict pass", page.seconds(planned["seconds_from_first_blocks"]), page.seconds(real["seconds"])],
    ]
    if real["seconds"]:
        rate = page.size(round(real["bytes_read"] / real["seconds"]))
        rows.append(["bytes read a second", page.number(None), rate])
    return page.section(
        "Planned and real",
        page.table(["", "planned", "real"], rows, "The planned time is what the first three blocks took, for all."),
    )


def _quarantine(record: Record) -> Html:
    parts = []
    for name in record.ledger.value("passes") or {}:
        failed = record.ledger.quarantined(name)
        for number, error in sorted(failed.items())[:_MOST_FAILED]:
            said = f"{name}, block {number}: {error.get('error')}"
            parts.append(page.folded(said, error.get("traceback", "")))
    if not parts:
        return page.section("Blocks set aside", lead="None: every block has a result.")
    lead = "These blocks have no result. Mend the cause and give the same command with --retry-failed."
    return page.section("Blocks set aside", *parts, lead=lead)


def _provenance(record: Record) -> Html:
    from unetflow.storage.ngff import get_attributes

    own = get_attributes(record.out).get("unetflow", {})
    inputs = [f"{name} ".lstrip() + d for name, found in record.fingerprint.get("inputs", {}).items() for d in found]
    rows = {
        "model, sha256": page.text(record.fingerprint.get("model")),
        "input, sha256 of metadata, sizes and times": page.text(inputs[:5]),
        "kind": page.text(own.get("kind")),
        "normalised by": page.text(f"{own.get('normalise')}, per {own.get('normalise_per')}"),
        "versions": page.text([f"{k} {v}" for k, v in own.get("versions", {}).items()]),
        "proof": page.text(f"unetflow verify {record.out}"),
    }
    return page.section("Data and versions", page.facts(rows))
