"""Run one long function on several workers at once: it tells events, can be stopped, survives its workers.

::

    gather workers -> survey -> seats -> ranks run ------------------------> result of rank 0
         ^                                  | one dies, raises or is silent
         +---- the others are ended <-------+

The function keeps its own checkpoints. When a rank is lost, all are ended and called again, on the
workers that live, and go on from the latest checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from unetflow.errors import Interrupted
from unetflow.runtime.outcomes import pack
from unetflow.runtime.rank import Event, Rank
from unetflow.runtime.rankwatch import Loss, Watch
from unetflow.runtime.seats import choose_seats, count_coming, gather_workers, restart, survey

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Rank", "Supervision", "run_ranks"]

logger = logging.getLogger(__name__)

RankFunction = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Supervision:
    """How patient the driver is; all in seconds but the first.

    Parameters
    ----------
    restarts : int
        How often lost ranks are made good.
    settled : float
        Ranks that ran for so long prove that going on helps: restarts count from 0 again.
    patience : float
        Without any worker, after which the call gives up.
    regather : float
        For lost workers to come back, before fewer go on.
    silence : float
        After which a rank that neither works nor waits is taken for lost; at least ten times
        the longest that it was silent before.
    first_silence : float
        The same, before its first sign of work: it loads and compiles then.
    """

    restarts: int = 3
    settled: float = 900.0
    patience: float = 600.0
    regather: float = 20.0
    silence: float = 60.0
    first_silence: float = 900.0


def run_ranks(
    fn: RankFunction,
    kwargs: dict[str, Any],
    client: Client | None = None,
    *,
    most: int = 1,
    accelerators: Callable[[], Any] | None = None,
    on_event: Callable[[Event], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
    how: Supervision | None = None,
) -> Any:
    """Call ``fn(rank, **kwargs)`` once on each of several workers, and return what rank 0 returns.

    Parameters
    ----------
    fn : callable
        Importable on workers; its first argument is a `Rank`.
    kwargs : dict
        Further arguments; small and picklable.
    client : distributed.Client, optional
        None calls ``fn`` in this process, as the only rank.
    most : int
        Largest number of ranks; fewer where there are fewer workers.
    accelerators : callable, optional
        Called on each worker: names of the accelerators it sees, the same name for the same one.
        Where any worker has some, each accelerator gets one rank; else each worker.
    on_event : callable, optional
        Called in this thread with each event, in the order of each rank.
    should_stop : callable, optional
        Asked in this process; its truth travels to the workers within about a second.
    how : Supervision, optional

    Returns
    -------
    object
        What rank 0 returned. An exception of ``fn`` that another try cannot mend is raised here.

    Raises
    ------
    Interrupted
        When the scheduler or every worker is lost, or workers are lost again and again.
    """
    tell, stopper, how = on_event or (lambda event: None), should_stop or (lambda: False), how or Supervision()
    if client is None:
        names = tuple(accelerators()) if accelerators else ()
        return fn(Rank(emit=tell, should_stop=stopper, device=0 if names else None), **kwargs)
    call = pack((fn, kwargs))
    names_code = pack(accelerators) if accelerators else None
    n_wanted, shunned, n_restarts = count_coming(client), set[str](), 0
    while True:
        workers = gather_workers(client, min(n_wanted, most), how.patience, how.regather, shunned, stopper)
        seats = choose_seats(survey(client, workers, names_code), most)
        if not seats:
            shunned |= restart(client, workers)
            continue
        began = time.monotonic()
        with Watch(client, call, seats, how.silence, how.first_silence) as watch:
            end = watch.follow(tell, stopper)
            if not isinstance(end, Loss):
                return end
            shunned |= watch.end_all()
        n_restarts = 1 if time.monotonic() - began > how.settled else n_restarts + 1
        if n_restarts > how.restarts:
            _give_up(end, how.restarts)
        n_wanted = len(seats)
        logger.warning("%s; beginning again from the checkpoint, %d of %d restarts", end.why, n_restarts, how.restarts)


def _give_up(end: Loss, restarts: int) -> None:
    if end.error is not None:
        raise end.error
    raise Interrupted(
        f"training workers may be lost at most {restarts} times in a row, and one more was ({end.why}); look at its "
        "memory and its log, then the same command goes on"
    )
