r"""Run a task over blocks: few in flight, tried again, quarantined, stopped and gone on with.

::

    blocks --> runs --> in flight (a few per worker) --> report  --> record(number, report)
                  ^                                 \
                  |  single blocks, elsewhere, later \-> failure --> quarantine(number, error)
                  +---------------------------------------'

What is done is the caller's ledger, written by ``record`` after the block wrote its data;
nothing here is kept for the length of the volume.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from unetflow.runtime.books import Clock, Pass, PassResult
from unetflow.runtime.dispatch import Dispatch
from unetflow.runtime.executors import Executor, InProcess
from unetflow.runtime.lanes import Blocks, Bricked, BrickShape, Lanes
from unetflow.runtime.oncluster import OnCluster
from unetflow.runtime.outcomes import Report, Task
from unetflow.runtime.pace import Pace, RunLength
from unetflow.runtime.pipeline import PipelinedTask
from unetflow.runtime.progress import Progress, Silent

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Blocks", "Bricked", "PassResult", "PipelinedTask", "run_pass"]


def run_pass(
    task: Task | PipelinedTask,
    blocks: Blocks | Bricked,
    *,
    client: Client | None = None,
    done: Collection[int] = frozenset(),
    record: Callable[[int, Report], None],
    quarantine: Callable[[int, dict[str, Any]], None] | None = None,
    name: str,
    retries: int = 2,
    run_length: RunLength = "auto",
    brick: BrickShape | None = None,
    progress: Progress | None = None,
    should_stop: Callable[[], bool] | None = None,
    deadline: float | None = None,
    max_failed_share: float = 0.5,
    patience: float = 600.0,
    block_seconds: float = 3600.0,
    away_patience: float = 300.0,
) -> PassResult:
    """Run ``task`` on every block that is not done, and record each report.

    Parameters
    ----------
    task : callable
        Takes a :class:`Block`, writes its data, returns a small JSON-like dict. Picklable and
        importable on workers. Doing a block twice must be harmless. If it has the methods
        ``load(block)``, ``compute(block, loaded)`` and ``store(block, result) -> dict``, the next block is
        read and the last one written while one is computed.
    blocks : BlockGrid, brick or sequence of Block
        Blocks by position; each is made once, shortly before it is sent.
    client : distributed.Client, optional
        Workers to use; None works in this process, with the same bookkeeping.
    done : set or dict of int
        Numbers of blocks that an earlier run finished; they are skipped.
    record : callable
        Called in this process with number and report of each block, in any order.
    quarantine : callable, optional
        Called with the number of a block that failed for good, and with a dict of ``error``,
        ``traceback`` and ``worker``. Without it such a block ends the pass.
    name : str
        The pass, as ``stage/pass``, for messages.
    retries : int
        Tries after the first; a run is split into its blocks before any of them counts.
    run_length : int or "auto"
        Neighbouring blocks that travel as one task: by default as many as take a few seconds.
    brick : tuple of int, or one for each grid, optional
        Blocks along each axis of what one worker does at a stretch, so that it meets the chunks
        that neighbours share; ``blocks`` then needs a method ``bricks``. Without it all blocks are one
        brick. Workers share a brick where there are too few of them.
    progress : Progress, optional
        Told about each block.
    should_stop : callable, optional
        Asked often; once true, no new block starts and the running ones finish.
    deadline : float, optional
        Monotonic time in seconds (`time.monotonic`) after which no new block starts.
    max_failed_share : float
        Stop when more than this share of the blocks tried failed, and more than 20.
    patience : float
        Seconds without any worker after which the pass stops.
    block_seconds : float
        A worker that finishes nothing for so long hangs: it is ended, and its blocks are tried elsewhere.
    away_patience : float
        Seconds for which a store that does not answer is waited for.

    Returns
    -------
    PassResult
        Every block is done, skipped or quarantined.

    Raises
    ------
    Interrupted
        After a signal, the deadline, or the loss of the scheduler, of all workers or of the store.
    InputError
        When a task raises one.
    StageError
        When the disk is full, a permission is lost, or too many blocks fail.
    """
    clock, pace = Clock(should_stop, deadline), Pace(run_length)
    executor: Executor = (
        InProcess(task, clock.is_over)
        if client is None
        else OnCluster(client, task, name, patience, longest=pace.longest, block_seconds=block_seconds)
    )
    n_before = min(len(done), len(blocks))
    dispatch = Dispatch(executor, Lanes(blocks, brick, done), pace, len(blocks) - n_before)
    work = Pass(dispatch, len(blocks), n_before, record, quarantine, name, retries, progress or Silent())
    work.max_failed_share, work.away_patience = max_failed_share, away_patience
    try:
        result = work.run(clock)
    except BaseException as error:
        executor.close(error)
        raise
    else:
        executor.close()
    finally:
        work.progress.finish()
    return result
