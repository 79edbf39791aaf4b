"""Parts of a stage's blocks: which are whose, and who may work beside whom."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unetflow.errors import InputError
from unetflow.geometry import BlockGrid, Box
from unetflow.stages.parts import Part
from unetflow.stages.pieces import Pieces, Some
from unetflow.stages.work import Conditions, open_work
from unetflow.storage.ledger import peek_ledger
from unetflow.storage.lock import LockedError

PRINT = {"model": "m"}


def work(folder: Path, part: str | None = None, fingerprint: dict[str, Any] | None = None, **more: Any) -> Any:
    chosen = None if part is None else Part.parse(part)
    return open_work("segment", folder / "out", fingerprint or PRINT, Conditions(), part=chosen, **more)


@given(st.integers(0, 40), st.integers(1, 50), st.booleans())
def test_parts_hold_each_block_once_and_are_alike_in_size(n_blocks: int, count: int, is_some: bool) -> None:
    pieces = Pieces((BlockGrid(Box.of_shape((2 * n_blocks + 2,)), (1,)),))
    blocks = Some(pieces, 2 * np.arange(n_blocks)) if is_some else pieces
    shares = [Part(k, count).of(blocks) for k in range(1, count + 1)]
    assert [b.number for share in shares for b in share] == [b.number for b in blocks]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "-1/4", "a/b", "1/4/2", ""])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="k/n with 1 <= k <= n"):
        Part.parse(text)


def test_parts_work_side_by_side_and_exclude_a_whole_run_and_themselves(tmp_path: Path) -> None:
    with work(tmp_path, "1/2"), work(tmp_path, "2/2"):
        with pytest.raises(LockedError), work(tmp_path):
            pass
        with pytest.raises(LockedError), work(tmp_path, "2/2"):
            pass


def test_a_whole_run_excludes_parts(tmp_path: Path) -> None:
    with work(tmp_path), pytest.raises(LockedError), work(tmp_path, "1/2"):
        pass
    assert not list((tmp_path / "out" / ".unetflow" / "parts").glob("*/ledger*"))


def test_parts_of_another_number_are_refused(tmp_path: Path) -> None:
    with work(tmp_path, "1/2") as part:
        part.ledger.record("predict", 0, {})
    with pytest.raises(InputError, match="of one number"), work(tmp_path, "1/3"):
        pass


def test_a_whole_run_takes_over_what_parts_did_and_parts_what_it_did(tmp_path: Path) -> None:
    with work(tmp_path, "1/2") as part:
        part.ledger.record("predict", 3, {"tiles": 5})
        part.ledger.quarantine("predict", 4, {"error": "poison"})
    with work(tmp_path, "2/2") as part, part.first_start() as shared:
        shared.set_value("created", True)
    with work(tmp_path) as whole:
        assert list(whole.ledger.reports("predict")) == [(3, {"tiles": 5})]
        assert list(whole.ledger.quarantined("predict")) == [4]
        assert whole.ledger.value("created") is True
    with work(tmp_path, "1/2") as part:
        assert list(part.before.done("predict")) == [3]
        assert part.before.value("created") is True


def test_what_passes_took_is_added_up_over_parts(tmp_path: Path) -> None:
    for part, seconds in (("1/2", 2.0), ("2/2", 3.0)):
        with work(tmp_path, part) as open_part:
            open_part.ledger.set_value("passes", {"predict": {"blocks": 4, "seconds": seconds, "retries": 1}})
    with work(tmp_path) as whole:
        assert whole.ledger.value("passes") == {"predict": {"blocks": 8, "seconds": 5.0, "retries": 2}}


def test_a_whole_run_that_overwrites_forgets_parts(tmp_path: Path) -> None:
    with work(tmp_path, "1/2") as part:
        part.ledger.record("predict", 3, {})
    with work(tmp_path, fingerprint={"model": "other"}, overwrite=True) as whole:
        assert not list(whole.ledger.done("predict"))
    with work(tmp_path, fingerprint={"model": "other"}) as whole:
        assert not list(whole.ledger.done("predict"))


def test_a_part_with_another_fingerprint_is_refused_by_the_whole_run_and_by_its_neighbours(tmp_path: Path) -> None:
    with work(tmp_path, "1/2") as part, part.first_start():
        part.ledger.record("predict", 3, {})
    other = {"model": "other"}
    with pytest.raises(InputError, match="model"), work(tmp_path, fingerprint=other):
        pass
    with pytest.raises(InputError, match="model"), work(tmp_path, "2/2", other) as part, part.first_start():
        pass
    with work(tmp_path) as whole:
        assert list(whole.ledger.done("predict")) == [3]


def test_looking_at_a_ledger_changes_nothing(tmp_path: Path) -> None:
    with work(tmp_path) as whole:
        whole.ledger.record("predict", 3, {})
    [file] = (tmp_path / "out" / ".unetflow" / "segment").iterdir()
    file.write_bytes(torn := file.read_bytes() + b"torn")
    ledger = peek_ledger(file.parent, PRINT)
    assert ledger is not None
    assert list(ledger.done("predict")) == [3]
    assert file.read_bytes() == torn
    assert peek_ledger(tmp_path / "none", PRINT) is None
