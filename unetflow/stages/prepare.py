"""Prepare: statistics, weight maps and elastic-deformed patches into ``RUN/dataset.zarr``.

::

    measure   raw -> histograms; labels -> class counts and candidate centres
    label     classes and multilabel only: components over the whole volume
    weigh     labels with a halo -> weight maps
    sample    patch boxes -> deform -> patch store
"""

from __future__ import annotations

import logging
import shutil
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from unetflow.geometry import BlockGrid, Box
from unetflow.stages.admission import missing_of, refuse_large_chunks
from unetflow.stages.census import Census
from unetflow.stages.components import Labelling, label_volumes
from unetflow.stages.counting import CountBlock
from unetflow.stages.facts import collect_facts
from unetflow.stages.measure import measure_volumes
from unetflow.stages.network import model_spec
from unetflow.stages.prepare_plan import Plan, fingerprint, plan
from unetflow.stages.previews import write_previews
from unetflow.stages.results import PrepareResult
from unetflow.stages.sample import SampleBlock, place_tiles
from unetflow.stages.sparse import Presence
from unetflow.stages.truth import Truth, TruthForeground
from unetflow.stages.weigh import WeighBlock
from unetflow.stages.work import Conditions, Work, open_work

if TYPE_CHECKING:
    from unetflow.settings import Settings
    from unetflow.storage.volume import Volume

log = logging.getLogger(__name__)


def prepare(
    settings: Settings,
    client: Any = None,
    *,
    conditions: Conditions | None = None,
    overwrite: bool = False,
    retry_failed: bool = False,
) -> PrepareResult:
    """Make ``RUN/dataset.zarr`` from the annotated volumes of the settings.

    Parameters
    ----------
    settings : Settings
        The project.
    client : distributed.Client, optional
        Where blocks run; None is a plain loop.
    conditions : Conditions, optional
        Client, progress, and when to stop, in one record.
    overwrite : bool
        Start anew, whatever an earlier run left.
    retry_failed : bool
        Try blocks again that an earlier run set aside.

    Returns
    -------
    PrepareResult
        Counts, class weights, shapes and the totals of the blocks.

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
    made = plan(settings)
    inputs = [(volume, None) for item in made.items for volume in (item.raw, item.labels)]
    refuse_large_chunks([volume for volume, _ in inputs], conditions)
    missing = missing_of(inputs, settings.prepare.missing)
    prints = fingerprint(made)
    with open_work(
        "prepare", settings.run_folder, prints, conditions, overwrite=overwrite, retry_failed=retry_failed
    ) as work:
        return cast(PrepareResult, {**_prepare(made, work, prints), **missing})


def _prepare(made: Plan, work: Work, prints: dict[str, Any]) -> dict[str, Any]:
    from unetflow.storage import ngff

    settings = made.settings
    histograms = measure_volumes(work, [item.raw for item in made.items], settings.run.seed)
    census = _count(made, work, made.presence)
    if work.ledger.value("created") is None:
        shutil.rmtree(made.dataset, ignore_errors=True)
        ngff.create_group(str(made.dataset), {}, overwrite=True)
        work.ledger.set_value("created", True)
    kind = made.kind
    n_classes = 2 if kind == "instances" else census.n_classes(kind)
    if kind == "classes":
        mapped = [v for item in made.items for v in (item.data.class_map or {}).values()]
        n_classes = max(n_classes, max(mapped, default=0) + 1)
    spec = model_spec(settings, made.items[0].raw.n_channels, n_classes, is_multilabel=kind == "multilabel")
    truths = tuple(Truth(item, made.linked, n_classes) for item in made.items)
    components = _find_components(made, work, truths) if kind != "instances" else (None,) * len(truths)
    class_weights = _class_weights(settings, census, kind, n_classes)
    weights = _weigh(made, work, truths, components, class_weights)
    counts, task = _sample(made, work, truths, weights, census, class_weights)
    facts = collect_facts(made, prints, spec, histograms, census, class_weights, counts)
    ngff.set_attributes(str(made.dataset), {"unetflow": facts})
    work.ledger.set_value("weighed", True)  # whoever comes again finds no components, and needs none
    work.ledger.flush()
    shutil.rmtree(made.scratch / "components.zarr", ignore_errors=True)
    previews = write_previews(task, settings.run_folder / "previews")
    return {
        "dataset": str(made.dataset),
        "images": len(made.items),
        "classes": n_classes,
        "class_weights": facts["class_weights"],
        "patch_shape": list(made.patch_shape),
        "output_shape": list(made.output_shape),
        "patches": counts,
        "previews": previews,
        **work.totals(),
    }


def _count(made: Plan, work: Work, presence: Presence) -> Census:
    """Count classes, and gather centres and tiles for the patches."""
    census = Census(made.settings.prepare.patches)
    pieces = presence.counted.pieces
    truths = tuple(Truth(item, made.linked) for item in made.items)
    streamed = tuple(n > 0 for n in presence.n_absent)
    task = CountBlock(
        truths, made.splits, pieces, made.settings.run.seed, census.n_wanted, made.validation_tile, streamed
    )
    work.run_pass("count", task, presence.counted, census.add)
    for index, (item, n_absent) in enumerate(zip(made.items, presence.n_absent, strict=True)):
        if not n_absent:
            continue
        is_multilabel = made.kind == "multilabel"
        if item.data.role == "train":
            census.add_counts(index, n_absent, {0: 0 if is_multilabel else n_absent})
        if made.splits[index].train is not None:
            census.add_centres(-1 if is_multilabel else 0, index, *_absent_centres(task, index, presence))
    return census


def _absent_centres(task: CountBlock, index: int, presence: Presence) -> tuple[Any, Any]:
    """Return the streamed places of an image that lie in blocks which nobody looked at."""
    pieces = presence.counted.pieces
    places, ranks = task.stream(index)
    numbers = pieces.number_of(index, places)
    is_absent = ~np.isin(numbers, presence.counted.numbers)
    linear = np.ravel_multi_index(tuple(places[is_absent].T), task.truths[index].item.labels.shape)
    return ranks[is_absent], np.asarray(linear, np.uint64)


def _class_weights(settings: Settings, census: Census, kind: str, n_classes: int) -> np.ndarray[Any, Any]:
    """Return the weight of each class, or for multilabel of (negative, positive) of each."""
    from unetflow.numerics.weights import class_weights, multilabel_weights

    counts = np.array([census.counts.get(k, 0) for k in range(n_classes)], np.int64)
    n_valid = sum(census.n_valid.values())
    if not settings.prepare.class_balance:
        return np.ones((n_classes, 2) if kind == "multilabel" else n_classes)
    weights = multilabel_weights(counts, n_valid) if kind == "multilabel" else class_weights(counts)
    for k in np.flatnonzero(counts == 0):
        log.warning(
            "class %d has no voxel in the training data, weighs 0 and will not be learnt; do the labels hold it, "
            "within roi and mask, and are raw and labels the right way round?", k,
        )  # fmt: skip
    if (weights >= 1000).any():
        log.warning("a class is so rare that its weight is capped at 1000")
    return np.asarray(weights)


def _find_components(made: Plan, work: Work, truths: tuple[Truth, ...]) -> tuple[Volume | None, ...]:
    """Label the components of the foreground over each whole volume, into a temporary store."""
    from unetflow.storage.ngff import create_group
    from unetflow.storage.volume import create_array, open_volume

    store = made.scratch / "components.zarr"
    is_new = work.ledger.value("components") is None or work.ledger.value("weighed") is not None
    if is_new:
        shutil.rmtree(store, ignore_errors=True)
        create_group(str(store), {}, overwrite=True)
    jobs = []
    for index, (truth, (chunk, shard)) in enumerate(zip(truths, made.layouts, strict=True)):
        labels = truth.item.labels
        arrays = []
        for name in ("fragments", "ids"):
            path = str(store / f"{name}-{index}")
            if is_new:
                create_array(
                    path, axes=labels.grid_axes, shape=labels.shape, n_channels=None, dtype="uint32", chunk=chunk,
                    shard=shard, voxel_size=labels.voxel_size,
                )  # fmt: skip
            arrays.append(open_volume(path, axes=labels.grid_axes))
        jobs.append(Labelling(labels, arrays[0], arrays[1], BlockGrid(labels.box, shard), made.linked))
    work.ledger.set_value("components", True)
    label_volumes(
        work, tuple(jobs), TruthForeground(truths), connectivity="face", min_size=0, scratch=store,
        prefix="components-", only=made.presence.labelled.numbers,
    )  # fmt: skip
    return tuple(job.target for job in jobs)


def _weigh(
    made: Plan,
    work: Work,
    truths: tuple[Truth, ...],
    components: tuple[Volume | None, ...],
    class_weights: np.ndarray[Any, Any],
) -> tuple[Volume, ...]:
    """Write the weight map of every label volume."""
    from unetflow.storage.ngff import create_group
    from unetflow.storage.volume import create_array, open_volume

    targets = []
    is_new = work.ledger.value("weights") is None
    if is_new:
        create_group(str(made.dataset / "weights"), {}, overwrite=True)
    is_multilabel = made.kind == "multilabel"
    for item, (chunk, shard) in zip(made.items, made.layouts, strict=True):
        path = made.dataset / "weights" / str(item.table)
        if item.name:
            if is_new and not path.exists():
                create_group(str(path), {}, overwrite=True)
            path = path / item.name
        axes = _with_channels(item.labels.grid_axes) if is_multilabel else item.labels.grid_axes
        if is_new:
            create_array(
                str(path), axes=axes, shape=item.labels.shape, n_channels=len(class_weights) if is_multilabel else None,
                dtype="float32", chunk=chunk, shard=shard, fill_value=float(class_weights.flat[0]),
                voxel_size=item.labels.voxel_size, translation=item.labels.translation, overwrite=True,
            )  # fmt: skip
        targets.append(open_volume(str(path), axes=axes))
    work.ledger.set_value("weights", True)
    task = WeighBlock(
        truths, components, tuple(targets), made.presence.weighed.pieces, class_weights.tolist(),
        made.settings.prepare.w0, made.settings.prepare.sigma, made.settings.prepare.tolerance,
        made.settings.prepare.border_where,
    )  # fmt: skip
    work.run_pass("weigh", task, made.presence.weighed)
    return tuple(targets)


def _with_channels(grid_axes: str) -> str:
    return "tc" + grid_axes[1:] if grid_axes.startswith("t") else "c" + grid_axes


def _sample(
    made: Plan,
    work: Work,
    truths: tuple[Truth, ...],
    weights: tuple[Volume, ...],
    census: Census,
    class_weights: np.ndarray[Any, Any],
) -> tuple[dict[str, int], SampleBlock]:
    """Write training and validation patches; each shard of patches is one block.

    Returns
    -------
    counts : dict
    task : SampleBlock
        What made the training patches.
    """
    from unetflow.storage.patches import create_patches, open_patches

    settings = made.settings.prepare
    is_multilabel = made.kind == "multilabel"
    centres = census.draw(settings.patches, settings.foreground_fraction, is_multilabel)
    validation = place_tiles(census.draw_tiles(), made.items, made.splits, made.validation_tile)
    splits = [(split, places) for split, places in (("train", centres), ("validation", validation)) if len(places)]
    if work.ledger.value("patches") is None:  # all of them before the first block: a restart must not make one anew
        for split, places in splits:
            create_patches(
                str(made.dataset), split, count=len(places),
                image_shape=(made.items[0].raw.n_channels, *made.patch_shape), image_dtype=made.items[0].raw.dtype,
                target_shape=(*((truths[0].n_classes,) if is_multilabel else ()), *made.output_shape), overwrite=True,
            )  # fmt: skip
            np.save(made.places_file(split), places)
        work.ledger.set_value("patches", True)
    counts = {"train": len(centres), "validation": len(validation)}
    tasks = {}
    for split, places in splits:
        store = open_patches(str(made.dataset), split)
        tasks[split] = task = SampleBlock(
            truths, weights, made.splits, store, str(made.places_file(split)), split, made.spec.margin,
            made.patch_shape, made.settings.run.seed, settings.elastic_grid,
            settings.elastic_sigma if split == "train" else 0.0,
            settings.interpolation_order, class_weights.tolist(),
        )  # fmt: skip
        grid = BlockGrid(Box.of_shape((len(places),)), (store.shard_size,))
        folded: list[int] = []
        work.run_pass(f"sample-{split}", task, grid, lambda _, report, kept=folded: kept.append(report["scaled"]))  # type: ignore[misc]
        counts[f"{split}_scaled_against_folding"] = sum(folded)
    return counts, tasks["train"]
