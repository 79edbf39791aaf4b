"""Scores that `evaluate` keeps beside an output, for its report: ``OUT/.unetflow/scores.json``."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from unetflow.errors import InputError
from unetflow.stages.request import Record, read_record
from unetflow.stages.work import digest_of, private_place

if TYPE_CHECKING:
    from unetflow.stages.comparison import Pair, Tally
    from unetflow.stages.pieces import Pieces

log = logging.getLogger(__name__)

FILE_NAME = "scores.json"
_N_PLACES = 3

Evaluation = dict[str, Any]


def places_of(pairs: tuple[Pair, ...], pieces: Pieces, tally: Tally) -> Evaluation:
    """Return where it is worst and best: boxes of the segmentation, and where the truth lies on it."""
    worst = tally.worst()[:_N_PLACES]
    best = [number for number in tally.best() if number not in worst][:_N_PLACES]
    return {"worst": [_place(pairs, pieces, n) for n in worst], "best": [_place(pairs, pieces, n) for n in best]}


def _place(pairs: tuple[Pair, ...], pieces: Pieces, number: int) -> dict[str, Any]:
    index, here = pieces.locate(number)
    pair = pairs[index]
    return {
        "image": pair.name,
        "start": list(here.inner.start),
        "stop": list(here.inner.stop),
        "truth": pair.truth.path,
        "truth_axes": pair.truth.axes,
        "offset": list(pair.offset),
        "kind": pair.meaning.kind,
    }


def keep_scores(
    segmentation: str, truth: str, chosen: dict[str, Any], scores: dict[str, Any], places: Evaluation
) -> None:
    """Keep an evaluation in the record of an output, in the place of an earlier one of the same kind."""
    from unetflow.storage.store import normalise, write_document

    try:
        record = read_record(segmentation)
        if record is None:
            return
        asked = {"truth": normalise(truth), **{key: _plain(value) for key, value in chosen.items()}}
        others = [e for e in read_scores(record) if e["asked"] != asked]
        new = {"asked": asked, "scores": scores, "places": places}
        document = {"fingerprint": digest_of(record.fingerprint), "evaluations": [*others, new]}
        write_document(private_place(record.out), FILE_NAME, document)
    except (OSError, InputError, NotImplementedError) as error:  # what somebody else owns may be scored too
        log.info("the scores are not kept beside %s (%s)", segmentation, error)


def read_scores(record: Record) -> list[Evaluation]:
    """Return the evaluations that are kept of an output; those of an overwritten one do not count."""
    from unetflow.storage.store import read_document

    found = read_document(private_place(record.out), FILE_NAME) or {}
    return list(found.get("evaluations", [])) if found.get("fingerprint") == digest_of(record.fingerprint) else []


def _plain(value: Any) -> Any:
    return {str(key): v for key, v in value.items()} if isinstance(value, dict) else value
