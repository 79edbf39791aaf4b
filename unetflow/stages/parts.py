"""One part of a stage's blocks: for job arrays, where no driver may wait for workers.

::

    OUT/.unetflow/lock            held by a whole run
                  segment/        its ledger
                  parts/shared/   whether the output was created; held for that moment only
                        3-of-16/  ledger and lock of the third part

Whoever starts takes its own lock first and looks at the others' then: of a whole run and a part
that start at the same moment at least one is refused. A whole run takes over what parts recorded.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.errors import InputError
from unetflow.stages.pieces import Pieces, Some

if TYPE_CHECKING:
    from unetflow.storage.ledger import Ledger
    from unetflow.storage.lock import Lock

FOLDER, SHARED = "parts", "shared"
CREATE_SECONDS = 120.0


@dataclass(frozen=True)
class Part:
    """The k-th of n parts, counted from 1.

    Examples
    --------
    >>> Part.parse("3/16")
    Part(number=3, count=16)
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Read ``k/n``.

        Raises
        ------
        InputError
            Unless 1 <= k <= n.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        number, count = (int(found[1]), int(found[2])) if found else (0, 0)
        if not 1 <= number <= count:
            raise InputError(f"--part must be k/n with 1 <= k <= n, got '{text}'; write for instance 3/16")
        return cls(number, count)

    @property
    def name(self) -> str:
        """Name of the part's folder."""
        return f"{self.number}-of-{self.count}"

    def of(self, blocks: Pieces | Some) -> Some:
        """Return the part's share of the blocks: neighbours, and as many as any other part but one."""
        low, high = (len(blocks) * k // self.count for k in (self.number - 1, self.number))
        if isinstance(blocks, Some):
            return Some(blocks.pieces, blocks.numbers[low:high])
        return Some(blocks, np.arange(low, high, dtype=np.int64))


def part_names(place: str) -> list[str]:
    """Name the parts that were begun at a stage's private place."""
    from unetflow.storage import folders, store

    return [n for n in folders.content_of(store.join(place, FOLDER)) if re.fullmatch(r"\d+-of-\d+", n)]


def was_begun(place: str) -> bool:
    """Say whether a part created the output."""
    from unetflow.storage import store
    from unetflow.storage.ledger import has_ledger

    return has_ledger(store.join(place, FOLDER, SHARED))


def take_over(ledger: Ledger, place: str, fingerprint: dict[str, Any], *, overwrite: bool) -> None:
    """Put what parts recorded into the ledger of a whole run, which holds the lock, and remove theirs.

    Raises
    ------
    InputError
        If a part is at work, or was begun with another fingerprint.
    """
    from unetflow.storage import folders, store
    from unetflow.storage.ledger import open_ledger
    from unetflow.storage.lock import refuse_held

    names = part_names(place)
    everywhere = [store.join(place, FOLDER, name) for name in [*names, SHARED]]
    for where in everywhere:
        refuse_held(where)
    if not names and not was_begun(place):
        return
    if not overwrite:
        took = dict(ledger.value("passes") or {})
        for where in everywhere:
            with open_ledger(where, fingerprint) as part:
                ledger.absorb(part)
                took = _added(took, part.value("passes") or {})
        ledger.set_value("passes", took)
        ledger.flush()
    folders.remove(store.join(place, FOLDER))


def _added(took: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """Add what a part's passes took to what others took; each part measures the volume for itself."""
    result = dict(took)
    for name, figures in more.items():
        known = result.get(name, dict.fromkeys(figures, 0))
        result[name] = {key: known[key] + figures[key] for key in figures}
    return result


@contextmanager
def open_part(
    part: Part, place: str, main: str, fingerprint: dict[str, Any]
) -> Iterator[tuple[Ledger, Ledger | None, Lock]]:
    """Hold lock and ledger of a part; yields the ledger, that of an earlier whole run, and the lock.

    Parameters
    ----------
    place, main : str
        Private place of the output, and the ledger's place of a whole run.

    Raises
    ------
    InputError
        If a whole run or the same part is at work, or the output was cut into another number of parts.
    """
    from unetflow.storage import folders, store
    from unetflow.storage.ledger import has_ledger, open_ledger, peek_ledger
    from unetflow.storage.lock import acquire_lock, refuse_held

    others = [name for name in part_names(place) if not name.endswith(f"-of-{part.count}")]
    if others:
        raise InputError(
            f"the parts of an output must be of one number, got {part.number}/{part.count} where {others[0]} was "
            "begun; take that number, or give the command without --part, which joins what is done"
        )
    own = store.join(place, FOLDER, part.name)
    with acquire_lock(own) as lock:
        refuse_held(place)
        is_new = not has_ledger(own)
        try:
            before = peek_ledger(main, fingerprint)
            with open_ledger(own, fingerprint) as ledger:
                yield ledger, before, lock
        except InputError:
            if is_new:
                folders.remove(own)
            raise


@contextmanager
def first_start(place: str, fingerprint: dict[str, Any]) -> Iterator[Ledger]:
    """Hold the ledger that all parts share, one part at a time: the first creates the output."""
    from unetflow.storage import store
    from unetflow.storage.ledger import open_ledger
    from unetflow.storage.lock import LockedError, acquire_lock

    shared = store.join(place, FOLDER, SHARED)
    with contextlib.ExitStack() as stack:
        until = time.monotonic() + CREATE_SECONDS
        while True:
            try:
                stack.enter_context(acquire_lock(shared))
                break
            except LockedError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.1)
        yield stack.enter_context(open_ledger(shared, fingerprint))
