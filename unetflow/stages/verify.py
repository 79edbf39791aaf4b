"""Verify: read every chunk of an output, then compute some of its blocks again and compare.

::

    checksums   every stored file, chunk by chunk           damage by disk or network
    measure     as `segment` does, where a volume's own statistics are wanted
    recompute   N random blocks: read, predict, compare     what carries a right checksum and is wrong

The second part proves the provenance too: the recorded model, input and settings do give this output.
"""

from __future__ import annotations

import logging
import secrets
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid
from unetflow.stages.layout import linked_axes
from unetflow.stages.output_arrays import stored_arrays
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.request import Record, plan_again, read_record
from unetflow.stages.results import VerifyResult
from unetflow.stages.stored import stored_only
from unetflow.stages.verify_blocks import CheckBlock, ReadBlock, unrounded
from unetflow.stages.verify_rules import ObjectRule
from unetflow.stages.work import Conditions, Work, open_work

if TYPE_CHECKING:
    from unetflow.stages import segment_plan
    from unetflow.storage.volume import Volume

log = logging.getLogger(__name__)

N_BLOCKS = 8
_MOST_TOLD = 20


@dataclass(frozen=True)
class Plan:
    """What is read, and what is computed again.

    Parameters
    ----------
    arrays : dict of str to Volume
        Every level of every array, by its name below the output.
    again : segment_plan.Plan or None
        None where no block is computed again.
    """

    out: str
    arrays: dict[str, Volume]
    record: Record | None
    again: segment_plan.Plan | None

    def summary(self) -> dict[str, Any]:
        """Return what ``--plan`` prints."""
        return {
            "out": self.out,
            "arrays": list(self.arrays),
            "blocks_to_choose_from": 0 if self.again is None else len(self.again.blocks),
        }


def plan(out: str, *, n_blocks: int = N_BLOCKS, model: str | None = None, volume: str | None = None) -> Plan:
    """Find the arrays of an output, and the model and volume that it came from.

    Raises
    ------
    InputError
        If there is no output, it is not finished, or what made it is not there.
    """
    from unetflow.storage.store import normalise

    if n_blocks < 0:
        raise InputError(f"--blocks must be 0 or more, got {n_blocks}; 0 checks checksums only")
    path = normalise(out)
    arrays, record = stored_arrays(path), read_record(path)
    if n_blocks == 0:
        return Plan(path, arrays, record, None)
    if record is None:
        raise InputError(
            f"blocks are computed again from the record in {path}/.unetflow, which is not there; --blocks 0 checks "
            "the checksums only"
        )
    again = plan_again(record, model=model, volume=volume)
    n_done, failed = len(record.ledger.done("predict")), record.ledger.quarantined("predict")
    if failed or n_done < len(again.blocks):
        raise InputError(
            f"an output must be finished to be verified, got {n_done} of {len(again.blocks)} blocks in {path}; "
            "finish it with the same unetflow segment command (--retry-failed for blocks that failed), or check "
            "checksums only: --blocks 0"
        )
    return Plan(path, arrays, record, again)


def verify(
    out: str,
    client: Any = None,
    *,
    n_blocks: int = N_BLOCKS,
    model: str | None = None,
    volume: str | None = None,
    seed: int | None = None,
    conditions: Conditions | None = None,
) -> VerifyResult:
    """Check every checksum of an output, then compute random blocks again and compare.

    Parameters
    ----------
    out : str
        Path or URL of an output of `segment`.
    client : distributed.Client, optional
        Where blocks run; None is a plain loop.
    n_blocks : int
        Blocks that are computed again; 0 is none.
    model, volume : str, optional
        Where model and volume lie now, if no longer where they were.
    seed : int, optional
        Of the choice of blocks; absent: another one each time.
    conditions : Conditions, optional
        Client, progress, and when to stop, in one record.

    Returns
    -------
    VerifyResult
        ``damaged`` files and ``mismatches``, both empty where all is well; ``recomputed`` are block numbers.
    """
    conditions = conditions or Conditions(client)
    made = plan(out, n_blocks=n_blocks, model=model, volume=volume)
    seed = secrets.randbits(32) if seed is None else seed
    mismatches: list[dict[str, Any]] = []
    chosen: list[int] = []
    with (
        tempfile.TemporaryDirectory(prefix="unetflow-verify-") as scratch,  # the driver's alone
        open_work("verify", scratch, {}, conditions) as work,
    ):
        damaged, n_files = _read_all(made, work)
        if made.again is not None and made.record is not None and not damaged:
            chosen = _choose(made.again.blocks, n_blocks, seed)
            mismatches = _recompute(made.record, made.again, work, chosen)
        elif damaged and made.again is not None:
            log.warning("no block is computed again before the damage is mended")
        totals = work.totals()
    found = {
        "out": made.out,
        "arrays": len(made.arrays),
        "files": n_files,
        "damaged": damaged[:_MOST_TOLD],
        "recomputed": chosen,
        "mismatches": mismatches[:_MOST_TOLD],
        "seed": seed,
        **totals,
    }
    return cast(VerifyResult, found)


def _read_all(made: Plan, work: Work) -> tuple[list[dict[str, Any]], int]:
    """Read every stored file; return those that are damaged, and how many there are."""
    volumes = tuple(made.arrays.values())
    pieces = Pieces(tuple(BlockGrid(v.box, v.shard or v.chunk) for v in volumes))
    damaged: list[dict[str, Any]] = []

    def collect(_: int, report: dict[str, Any]) -> None:
        if report:
            damaged.append(report)

    stored = stored_only(pieces, volumes)
    work.run_pass("checksums", ReadBlock(tuple(made.arrays), volumes, pieces), stored, collect)
    return sorted(damaged, key=lambda d: (d["array"], d["box"])), len(stored)


def _choose(blocks: Pieces | Some, n_blocks: int, seed: int) -> list[int]:
    """Draw the numbers of some blocks, without listing all."""
    n = min(n_blocks, len(blocks))
    positions = np.sort(np.random.default_rng(seed).choice(len(blocks), n, replace=False))
    return [int(blocks.numbers[p]) if isinstance(blocks, Some) else int(p) for p in positions]


def _recompute(
    record: Record, again: segment_plan.Plan, work: Work, chosen: Sequence[int]
) -> list[dict[str, Any]]:
    from unetflow.stages.outputs import open_outputs
    from unetflow.stages.segment import normalise_images, predict_task

    _tell_changed_inputs(record, again)
    stored = open_outputs(again)
    task = predict_task(again, record.fingerprint["model"], unrounded(stored), normalise_images(again, work))
    check = CheckBlock(
        task,
        stored,
        record.out,
        _rule(again),
        _precisions(record, set(chosen)),
    )
    found: list[dict[str, Any]] = []

    def collect(number: int, report: dict[str, Any]) -> None:
        found.extend({"block": number, "box": report["box"], **d} for d in report["differences"])

    numbers = np.array(chosen, np.int64)
    work.run_pass("recompute", check, Some(again.grids, numbers), collect)
    return sorted(found, key=lambda d: (d["block"], d["array"]))


def _rule(again: segment_plan.Plan) -> ObjectRule:
    chosen = again.settings.segment
    axes = again.images[0].volume.grid_axes
    return ObjectRule(
        linked_axes(axes, again.spec.dims, link=chosen.link),
        chosen.connectivity,
        chosen.min_size,
        chosen.fill_holes is not False,
        chosen.instances == "watershed",
    )


def _precisions(record: Record, chosen: set[int]) -> dict[int, str]:
    """Return in which precision blocks were made; reports of older versions do not tell."""
    reports = record.ledger.reports("predict")
    return {n: report.get("precision", "float32") for n, report in reports if n in chosen and "worker" in report}


def _tell_changed_inputs(record: Record, again: segment_plan.Plan) -> None:
    """Warn where size or time of an input's files are not those recorded: a copy has other times."""
    for image in again.images:
        now = [v.digest() for v in (image.volume, image.mask) if v is not None]
        if now != record.fingerprint["inputs"].get(image.name):
            log.warning("%s is not as it was: changed since, or a copy; differences may be its own", image.volume.path)
