"""What a segmentation was asked for: kept in its record, so that `verify` can ask again and `report` can tell.

Paths change and lie outside of what the bytes depend on, so they stand in ``OUT/.unetflow``, not in attributes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError
from unetflow.stages.work import private_place

if TYPE_CHECKING:
    from unetflow.stages.segment_plan import Plan


@dataclass(frozen=True)
class Record:
    """What the record of an output holds.

    Parameters
    ----------
    out : str
        The output: a path or URL.
    fingerprint : dict
        What its bytes depend on.
    ledger : unetflow.storage.ledger.Ledger
        Read only.
    """

    out: str
    fingerprint: dict[str, Any]
    ledger: Any

    @property
    def request(self) -> dict[str, Any] | None:
        """What was asked for; None where an older version wrote the output."""
        found = self.ledger.value("request")
        return None if found is None else dict(found)


def record_request(made: Plan, volume: str, mask: str | None, axes: str | None) -> dict[str, Any]:
    """Return what a segmentation was asked for, as JSON with absolute paths."""
    from unetflow.storage.store import normalise

    settings = made.settings
    tables = []
    for data in settings.data:
        table = data.model_dump(mode="json", exclude_unset=True)
        paths = {key: normalise(settings.resolve(table[key])) for key in ("raw", "labels", "mask") if table.get(key)}
        tables.append({**table, **paths})
    return {
        "volume": normalise(volume),
        "model": normalise(made.model),
        "mask": None if mask is None else normalise(mask),
        "axes": axes,
        "run": normalise(settings.run_folder),
        "seed": settings.run.seed,
        "segment": settings.segment.model_dump(mode="json"),
        "data": tables,
        "images": {
            image.name: {
                "start": list(image.domain.start), "shape": list(image.domain.shape), "block": list(image.block),
                "axes": image.volume.grid_axes, "voxel_size": list(image.volume.voxel_size), "unit": image.volume.unit,
            }
            for image in made.images
        },
    }  # fmt: skip


def read_record(out: str) -> Record | None:
    """Return the record of an output of `segment`; None where there is none."""
    from unetflow.storage.ledger import read_ledger
    from unetflow.storage.store import normalise

    path = normalise(out)
    found = read_ledger(private_place(path, "segment"))
    return None if found is None else Record(path, *found)


def plan_again(record: Record, *, model: str | None = None, volume: str | None = None) -> Plan:
    """Make the plan of a segmentation once more, from its record.

    Parameters
    ----------
    model, volume : str, optional
        Where model and volume lie now.

    Raises
    ------
    InputError
        If one of them is not there, or the model is another one.
    """
    import hashlib

    from unetflow.settings import make_settings
    from unetflow.stages import segment_plan
    from unetflow.storage.store import normalise

    request = record.request or {}
    model = _place("model", model or request.get("model"))
    there = _place("volume", volume or request.get("volume"))
    asked = request.get("segment", record.fingerprint["settings"])
    tables = [
        {**table, "raw": there} if table["raw"] == request["volume"] else table for table in request.get("data", ())
    ]
    values = {"data": tables, "segment": asked, "run": {"seed": record.fingerprint["seed"]}}
    made = segment_plan.plan(
        make_settings(values), there, model=model, out=record.out, roi=record.fingerprint["roi"],
        mask=request.get("mask"), axes=request.get("axes"), writes=False,
    )  # fmt: skip
    digest, wanted = hashlib.sha256(made.model.read_bytes()).hexdigest(), record.fingerprint["model"]
    if digest != wanted:
        raise InputError(
            f"blocks are computed again with the model that made the output (sha256 {wanted[:12]}...), got "
            f"{digest[:12]}... in {normalise(made.model)}; say where that one is with --model"
        )
    if set(record.fingerprint["tile"]) != {image.name for image in made.images}:
        raise InputError(
            f"the volume must hold the images {sorted(record.fingerprint['tile'])} of the output, got "
            f"{sorted(image.name for image in made.images)} in {there}; say where it is with --volume"
        )
    return _with_recorded_cut(made, record.fingerprint)


def _place(what: str, path: str | None) -> str:
    if path is None:
        raise InputError(f"the record of the output names no {what} (an older version wrote it); give --{what}")
    if "://" not in path and not Path(path).exists():
        raise InputError(f"blocks are computed again from the {what}, got none at {path}; give --{what} PATH")
    return path


def _with_recorded_cut(made: Plan, fingerprint: dict[str, Any]) -> Plan:
    """Take tile, chunk and shard as they are recorded, where this version would choose others."""
    from unetflow.stages.layout import choose_output_layout

    images = []
    for image in made.images:
        tile, chunk, shard = (tuple(fingerprint[key][image.name]) for key in ("tile", "chunk", "shard"))
        if (tile, chunk, shard) != (image.tile, image.chunk, image.shard):
            cut = replace(image, tile=tile, chunk=chunk, shard=shard)
            image = replace(cut, block=choose_output_layout(made.tiling_of(cut), chunk, shard).block)
        images.append(image)
    return replace(made, images=tuple(images))
