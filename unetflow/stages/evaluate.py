"""Evaluate: scores of a segmentation against truth, from counts that add over blocks."""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid
from unetflow.stages.comparison import Pair, ScoreBlock, Tally, score_objects
from unetflow.stages.components import Labelling, label_volumes
from unetflow.stages.inputs import pair_names, without_channels
from unetflow.stages.kept_scores import keep_scores, places_of
from unetflow.stages.layout import choose_layout, linked_axes
from unetflow.stages.masks import lay_over
from unetflow.stages.overlays import write_overlays
from unetflow.stages.pieces import Pieces
from unetflow.stages.results import Scores
from unetflow.stages.tables import Rows
from unetflow.stages.truth_map import ClassForeground, TruthMap
from unetflow.stages.work import Conditions, Work, open_work

if TYPE_CHECKING:
    from unetflow.settings import Settings
    from unetflow.storage.volume import Volume


LARGEST_SECTION = 8192**2


@dataclass(frozen=True)
class Plan:
    """What is compared with what."""

    pairs: tuple[Pair, ...]
    grids: Pieces
    sections: bool
    foreground: int | None
    is_multilabel: bool
    dims: int

    def summary(self) -> dict[str, Any]:
        """Return what ``--plan`` prints."""
        return {
            "images": len(self.pairs),
            "kind_of_truth": self.pairs[0].meaning.kind,
            "compared": [str(pair.domain) for pair in self.pairs[:5]],
            "blocks": len(self.grids),
        }


def plan(
    settings: Settings,
    segmentation: str,
    truth: str,
    *,
    sections: bool = False,
    foreground: int | None = None,
    class_map: dict[int, int] | None = None,
    mask: str | None = None,
) -> Plan:
    """Pair images, find the arrays to compare and the meaning of the truth's values.

    Raises
    ------
    InputError
        If an image has no partner, shapes do not meet, or a label array is no integer.
    """
    from unetflow.storage.volume import open_images

    outputs = _open_segmentation(segmentation)
    truths = open_images(truth, **_truth_hints(settings, truth))
    names = [("", "")] if list(outputs) == list(truths) == [""] else pair_names(list(outputs), list(truths))
    masks = open_images(mask) if mask else {}
    pairs = []
    for left, right in names:
        arrays, provenance = outputs[left]
        meaning = _truth_map(settings, truth, truths[right], provenance, class_map, foreground)
        pair = Pair.make(left, arrays, truths[right], meaning)
        if mask:
            if right not in masks:
                raise InputError(
                    f"--mask needs a mask for each of {len(names)} images, got {sorted(masks)}; name them alike"
                )
            pair = replace(pair, mask=lay_over(masks[right], truths[right]))
        pairs.append(pair)
    provenance = next(iter(outputs.values()))[1]
    dims = int(provenance.get("dims", min(3, len(pairs[0].truth.spatial_axes))))
    dims = 2 if sections else min(dims, len(pairs[0].truth.spatial_axes))
    grids = Pieces(tuple(BlockGrid(pair.domain, _block_shape(pair, sections=sections)) for pair in pairs))
    return Plan(tuple(pairs), grids, sections, foreground, pairs[0].meaning.is_multilabel, dims)


def _block_shape(pair: Pair, *, sections: bool) -> tuple[int, ...]:
    """Take whole planes where sections are scored or there is but one, else shards."""
    shape = pair.domain.shape
    is_plane = sections or math.prod(shape[:-2]) == 1
    if is_plane and math.prod(shape[-2:]) <= LARGEST_SECTION:
        return (1,) * (len(shape) - 2) + shape[-2:]
    return choose_layout(shape, 2 if is_plane else min(3, len(shape)))[1]


def _open_segmentation(path: str) -> dict[str, tuple[dict[str, Volume], dict[str, Any]]]:
    """Return the label arrays of each image, and what the output says of itself."""
    from unetflow.storage import ngff
    from unetflow.storage.volume import open_images, open_volume

    root = Path(path)
    own = ngff.get_attributes(path).get("unetflow") if (root / "zarr.json").is_file() else None
    if own is None:
        return {name: ({"plain": volume}, {}) for name, volume in open_images(path).items()}
    names = [""] if (root / "labels").is_dir() else sorted(
        p.name for p in root.iterdir() if (p / "labels" / "zarr.json").is_file()
    )
    if not names:
        raise InputError(f"evaluate needs the classes of a segmentation, got none in {path}; segment with classes")
    found = {}
    for name in names:
        labels = (root / name if name else root) / "labels"
        known = ngff.get_attributes(str(labels))["ome"]["labels"]
        found[name] = ({label: open_volume(str(labels / label)) for label in known}, own)
    return found


def _truth_hints(settings: Settings, truth: str) -> dict[str, Any]:
    data = _table_of(settings, truth)
    if data is None:
        return {}
    axes = data.axes if data.kind == "multilabel" else without_channels(data.axes)
    return {"default_axes": axes, "voxel_size": data.voxel_size}


def _table_of(settings: Settings, truth: str) -> Any:
    for data in settings.data:
        if Path(settings.resolve(data.labels)) == Path(truth):
            return data
    return None


def _truth_map(
    settings: Settings,
    path: str,
    truth: Volume,
    provenance: dict[str, Any],
    class_map: dict[int, int] | None,
    foreground: int | None,
) -> TruthMap:
    """Decide what the truth's values mean: from the option, the project file, or the segmentation."""
    data = _table_of(settings, path)
    kind = data.kind if data is not None else provenance.get("kind")
    stored = provenance.get("class_map")
    found = class_map or (data.class_map if data is not None else None)
    if found is None and stored and kind != "instances":
        found = {int(key): value for key, value in stored.items()}
    if class_map or (kind is None and foreground is not None):
        kind = "classes"
    ignore = data.ignore if data is not None else tuple(provenance.get("ignore", ()))
    if kind != "multilabel" and truth.n_channels != 1:
        raise InputError(f"truth must have one channel, got {truth.n_channels} in {truth.path}; choose one")
    return TruthMap(kind or "instances", found if kind == "classes" else None, ignore)


def evaluate(
    settings: Settings,
    segmentation: str,
    truth: str,
    client: Any = None,
    *,
    sections: bool = False,
    foreground: int | None = None,
    class_map: dict[int, int] | None = None,
    mask: str | None = None,
    overlays: str | None = None,
    conditions: Conditions | None = None,
) -> Scores:
    """Score a segmentation.

    Objects are scored as they are given: the segmentation's instances, the truth's ids. A truth
    of classes has no ids; its objects are the components, by faces, of its classes above 0, plane
    by plane for ``dims = 2`` and with ``sections``. With ``foreground`` the components of that one
    class are the objects on both sides.

    Parameters
    ----------
    settings : Settings
        The project; the ``[[data]]`` table that names the truth says what its values mean.
    segmentation, truth : str
        An output of `segment` or an integer array; integer arrays, or collections of them.
    client : distributed.Client, optional
        Where blocks run; None is a plain loop.
    sections : bool
        Score each plane (or image of a collection) on its own.
    foreground : int, optional
        Objects are the components of this class, in the segmentation and in a truth of classes.
    class_map : dict, optional
        Truth value -> class.
    mask : str, optional
        Path or URL of a mask over the truth, of any resolution; where it is 0 nothing counts.
    overlays : str, optional
        Folder for pictures of the worst sections or blocks.
    conditions : Conditions, optional
        Client, progress, and when to stop, in one record.

    Returns
    -------
    Scores
        A score that is not defined is None.

    Raises
    ------
    InputError
        For everything that `plan` refuses.

    Notes
    -----
    Scores of an output of `segment` are kept in its record, ``OUT/.unetflow/scores.json``, for `report`.
    """
    conditions = conditions or Conditions(client)
    made = plan(
        settings, segmentation, truth, sections=sections, foreground=foreground, class_map=class_map, mask=mask
    )
    with (
        tempfile.TemporaryDirectory(prefix=".unetflow-evaluate-", dir=_scratch_root(settings)) as scratch,
        open_work("evaluate", scratch, {}, conditions) as work,
    ):
        pairs = _with_components(made, work, Path(scratch))
        tally = Tally(len(pairs), made.sections, made.is_multilabel)
        longest = max(math.prod(_block_shape(pair, sections=sections)) for pair in pairs)
        rows = Rows.create(f"{scratch}/pairs", len(made.grids), 3, longest)
        task = ScoreBlock(pairs, made.grids, foreground, rows)
        work.run_pass("compare", task, made.grids, tally.add)
        pictures = {} if overlays is None else {"overlays": write_overlays(pairs, made.grids, tally.worst(), overlays)}
        scores = tally.scores(score_objects(pairs, made.grids, rows, Path(scratch), sections=sections))
        chosen = {"sections": sections, "foreground": foreground, "class_map": class_map, "mask": mask}
        keep_scores(segmentation, truth, chosen, scores, places_of(pairs, made.grids, tally))
        return cast(Scores, {**scores, **pictures, **work.totals()})


def _scratch_root(settings: Settings) -> str | None:
    """Work beside the run where workers of other hosts can see it, else in the current folder."""
    return str(settings.run_folder) if settings.run_folder.is_dir() else "."


def _with_components(made: Plan, work: Work, scratch: Path) -> tuple[Pair, ...]:
    """Label the components of what has no objects of its own: a foreground class, a truth of classes."""
    from unetflow.storage.volume import create_array, open_volume

    sources: list[tuple[int, str, Volume, TruthMap | None]] = []
    for index, pair in enumerate(made.pairs):
        if made.foreground is not None:
            sources.append((index, "seg", pair.class_array, None))
        if pair.meaning.kind == "classes" and (made.foreground is not None or pair.objects is not None):
            sources.append((index, "truth", pair.truth, pair.meaning))
    if not sources:
        return made.pairs
    jobs = []
    for index, side, volume, _ in sources:
        linked = linked_axes(volume.grid_axes, made.dims)
        chunk, shard = choose_layout(volume.shape, made.dims)
        arrays = []
        for name in ("fragments", "ids"):
            path = str(scratch / f"{side}-{index}-{name}")
            create_array(
                path, axes=volume.grid_axes, shape=volume.shape, dtype="uint32", chunk=chunk, shard=shard,
                voxel_size=volume.voxel_size, translation=volume.translation,
            )  # fmt: skip
            arrays.append(open_volume(path, axes=volume.grid_axes))
        jobs.append(Labelling(volume, arrays[0], arrays[1], BlockGrid(volume.box, shard), linked))
    maps = {volume: meaning for _, _, volume, meaning in sources}
    label_volumes(
        work, tuple(jobs), ClassForeground(maps, made.foreground), connectivity="face", min_size=0, scratch=scratch
    )
    found: dict[tuple[int, str], Volume] = {
        (index, side): job.target for (index, side, _, _), job in zip(sources, jobs, strict=True)
    }
    return tuple(
        pair.with_objects(found.get((index, "seg"), pair.objects), found.get((index, "truth")))
        for index, pair in enumerate(made.pairs)
    )
