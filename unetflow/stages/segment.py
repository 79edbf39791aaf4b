"""Segment: blockwise overlap-tile inference from Zarr to OME-Zarr.

::

    measure   where each volume's own statistics are wanted
    predict   read outer, mirrored -> tiles -> write inner        probabilities, classes
    label     components of the stored classes, in three passes   instances
    pyramid   a pass per level
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from unetflow.errors import InputError
from unetflow.stages.admission import refuse_large_chunks
from unetflow.stages.bricks import CHUNK_CACHE_BYTES
from unetflow.stages.figures import Tally, compare, plan_figures
from unetflow.stages.layout import linked_axes
from unetflow.stages.measure import measure_volumes, normalisation_of
from unetflow.stages.objects import find_objects
from unetflow.stages.outputs import Output, create_outputs
from unetflow.stages.parts import Part
from unetflow.stages.predict import PredictBlock
from unetflow.stages.pyramid import build_pyramids
from unetflow.stages.request import record_request
from unetflow.stages.results import SegmentResult
from unetflow.stages.seams import measure_seams
from unetflow.stages.segment_plan import Plan, fingerprint, plan
from unetflow.stages.tile_runner import Normalisation
from unetflow.stages.work import Conditions, Work, open_work, private_place, refuse_foreign, versions

if TYPE_CHECKING:
    from unetflow.settings import Settings

log = logging.getLogger(__name__)


def segment(
    settings: Settings,
    volume: str,
    client: Any = None,
    *,
    model: str | None = None,
    out: str | None = None,
    roi: str | None = None,
    mask: str | None = None,
    axes: str | None = None,
    part: str | None = None,
    conditions: Conditions | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> SegmentResult:
    """Segment a volume, or every image of a collection, block by block.

    Parameters
    ----------
    settings : Settings
        The project; ``[segment]`` says what is written.
    volume : str
        Path or URL of a Zarr array, an OME-Zarr image, or a group of images.
    client : distributed.Client, optional
        Where blocks run; None is a plain loop.
    model : str, optional
        A model file or a run folder; default: the run's own.
    out : str, optional
        Folder or URL of the result; default ``NAME.unetflow.zarr``.
    roi : str, optional
        ``z0:z1,y0:y1,x0:x1`` in voxels: only this region, and the output has its shape.
    mask : str, optional
        Path or URL of a mask of any resolution; where it is 0 nothing is computed and nothing stored.
    axes : str, optional
        Axes of the volume, letters of ``tczyx``, where metadata have none.
    part : str, optional
        ``k/n``: predict only the k-th of n parts of the blocks. What joins them is done by the
        same call without it.
    conditions : Conditions, optional
        Client, progress, and when to stop, in one record.
    overwrite : bool
        Start anew, whatever an earlier run left.
    retry_failed : bool
        Try blocks again that an earlier run set aside.

    Returns
    -------
    SegmentResult
        Where the result is, object counts, and the totals of the blocks.

    Raises
    ------
    InputError
        For everything that `plan` refuses, before anything is written; or if another run holds the place, or began
        it with other settings.
    StageError
        If the work cannot be done for a reason outside of its input.
    Interrupted
        If it was stopped; the same call goes on.
    """
    conditions = conditions or Conditions(client)
    made = plan(settings, volume, model=model, out=out, roi=roi, mask=mask, axes=axes)
    refuse_foreign(made.out, "segment", overwrite=overwrite)
    refuse_large_chunks([image.volume for image in made.images], conditions)
    # A part tells no figure: it lists the volume only where that may refuse it.
    missing = made.missing() if part is None or settings.segment.missing == "refuse" else {}
    prints = fingerprint(made, tta=settings.segment.tta)
    chosen = None if part is None else Part.parse(part)
    request = record_request(made, volume, mask, axes)
    if chosen is not None and overwrite:
        raise InputError(f"--overwrite starts a whole output anew, got it with --part {part}; remove {made.out} first")
    with open_work(
        "segment", made.out, prints, conditions, overwrite=overwrite, retry_failed=retry_failed, part=chosen
    ) as work:
        if work.ledger.value("request") != request:
            work.ledger.set_value("request", request)
        if chosen is None:
            return cast(SegmentResult, {**_segment(made, work, prints), **missing})
        _, task = _begin(made, work, prints)
        work.run_pass("predict", task, chosen.of(made.blocks), must_be_whole=False, brick=made.bricks)
        return cast(SegmentResult, {"out": made.out, "part": part, **work.totals()})


def _begin(made: Plan, work: Work, prints: dict[str, Any]) -> tuple[tuple[Output, ...], PredictBlock]:
    """Measure, and create the stores; returns them with the task that fills them."""
    normalisation = normalise_images(made, work)
    outputs = create_outputs(made, work, _provenance(made, prints))
    return outputs, predict_task(made, prints["model"], outputs, normalisation)


def predict_task(
    made: Plan, digest: str, outputs: tuple[Output, ...], normalisation: Sequence[Normalisation]
) -> PredictBlock:
    """Return the task that predicts a block into some outputs."""
    return PredictBlock(
        str(made.model),
        digest,
        made.images,
        tuple(made.tiling_of(image) for image in made.images),
        outputs,
        made.grids,
        tuple(normalisation),
        made.settings.segment.threshold,
        uuid.uuid4().hex,
        CHUNK_CACHE_BYTES,
        made.batch,
    )


def _segment(made: Plan, work: Work, prints: dict[str, Any]) -> dict[str, Any]:
    from unetflow.storage.folders import remove

    outputs, task = _begin(made, work, prints)
    tally = Tally(made)
    work.run_pass("predict", task, made.blocks, tally.add, must_be_whole=False, brick=made.bricks)
    objects: list[int] | None = None
    seam: float | None = None
    if work.quarantined:
        log.warning("blocks %s have no result yet; objects and pyramid wait for them", work.quarantined[:5])
    else:
        if "instances" in made.settings.segment.outputs:
            objects, outputs = find_objects(made, work, outputs)
        build_pyramids(work, [o.probabilities for o in outputs], is_labels=False)
        labels = [levels for o in outputs for levels in (*o.classes, o.instances)]
        build_pyramids(work, labels, is_labels=True, name="label-pyramid")
        remove(private_place(made.out, "labelling"))
        seam = _seam_score(made, work, outputs)
    result: dict[str, Any] = {"out": made.out, "images": len(made.images), "mode": made.settings.segment.mode}
    if objects is not None:
        result["objects"] = sum(objects)
    if seam is not None:
        result["seam_score"] = round(seam, 4)
        work.ledger.set_value("seam_score", result["seam_score"])
    result["cost"] = _cost(made, tally, work)
    if not work.quarantined and (work.ledger.value("result") is None or work.blocks > work.skipped):
        work.ledger.set_value("result", {**result, **work.totals()})
    return {**result, **work.totals()}


def _cost(made: Plan, tally: Tally, work: Work) -> dict[str, dict[str, Any]]:
    """Set what the predict pass was planned to take beside what it took."""
    done = work.passes["predict"]
    planned = plan_figures(made, n_threads=_threads_of_a_worker(work))
    n_workers = max(1, work.conditions.n_workers)
    return compare(planned, tally, done.seconds, n_blocks=done.blocks - done.skipped, n_workers=n_workers)


def _threads_of_a_worker(work: Work) -> int:
    """Ask a worker how many tiles it runs at once; 1 where none answers: a figure ends no run whose work is done."""
    from unetflow.runtime.environment import threads_of_a_task

    client = work.conditions.client
    if client is None:
        return threads_of_a_task()
    try:
        workers = list(client.scheduler_info(n_workers=-1)["workers"])[:1]
        answers = client.run(threads_of_a_task, workers=workers, on_error="ignore") if workers else {}
    except OSError:  # TimeoutError and Dask's CommClosedError are such
        answers = {}
    return int(next(iter(answers.values()), 1))


def _seam_score(made: Plan, work: Work, outputs: Sequence[Output]) -> float | None:
    """Measure the jumps across blocks in what was stored: probabilities, else classes."""
    stored = tuple(o.probabilities[0] if o.probabilities else o.classes[0][0] for o in outputs)
    linked = linked_axes(made.images[0].volume.grid_axes, made.spec.dims)
    ratios = [image.ratio for image in made.images]
    return measure_seams(work, stored, made.grids, linked, made.settings.run.seed, ratios)


def normalise_images(made: Plan, work: Work) -> list[Normalisation]:
    """Return offset and scale per channel of each image: its own, or those of the training data."""
    facts = made.facts
    if facts["normalise"] == "none" or facts["normalise_per"] == "training":
        own = facts["normalisation"]
        return [(own["offset"], own["scale"])] * len(made.images)
    histograms = measure_volumes(work, [image.volume for image in made.images], made.settings.run.seed)
    return [normalisation_of(h, facts["normalise"]) for h in histograms]


def _provenance(made: Plan, prints: dict[str, Any]) -> dict[str, Any]:
    """Return what the output says of itself: only what follows from the inputs."""
    keep = ("kind", "n_classes", "class_map", "ignore", "dims", "normalise", "normalise_per")
    return {
        **{key: made.facts[key] for key in keep},
        "model": prints["model"],
        "settings": prints["settings"],
        "roi": made.roi,
        "versions": versions(),
    }
