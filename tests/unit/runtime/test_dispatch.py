"""What goes out, and what is held back."""

from __future__ import annotations

from unetflow.geometry import BlockGrid, Box
from unetflow.runtime.dispatch import Dispatch
from unetflow.runtime.lanes import Lanes
from unetflow.runtime.outcomes import Attempt, Result, Worked
from unetflow.runtime.pace import Pace

GRID = BlockGrid(Box.of_shape((12,)), (1,))


class Workers:
    """Two workers that finish what they are told to."""

    longest_run, reads_ahead = 1, False

    def __init__(self) -> None:
        self.workers = {"a": 3, "b": 3}
        self.taken: list[Attempt] = []
        self.done: list[Result] = []

    def refresh(self) -> None: ...
    def stop(self) -> None: ...
    def close(self, error: BaseException | None = None) -> None: ...

    def submit(self, attempt: Attempt) -> None:
        self.taken.append(attempt)

    def collect(self, timeout: float) -> list[Result]:
        done, self.done = self.done, []
        return done

    def finish(self) -> None:
        """Be done with all that was taken."""
        self.done = [(attempt, Worked([], 0.0)) for attempt in self.taken]
        self.taken = []


def test_a_suspect_has_a_worker_to_itself_and_no_fresh_block_goes_out_beside_it() -> None:
    workers = Workers()
    dispatch = Dispatch(workers, Lanes(GRID, None, ()), Pace(1), len(GRID))
    dispatch.send()
    assert len(workers.taken) == 6
    dispatch.again.extend(Attempt((GRID[number],), is_suspect=True) for number in (9, 10, 11))
    dispatch.send()
    assert len(workers.taken) == 6, "both workers have other blocks"
    for n_suspects in (2, 1):
        workers.finish()
        dispatch.collect()
        dispatch.send()
        assert len(workers.taken) == len({attempt.worker for attempt in workers.taken}) == n_suspects
        assert all(attempt.is_suspect for attempt in workers.taken)
    workers.finish()
    dispatch.collect()
    dispatch.send()
    assert len(workers.taken) == 6
