"""One long function in this process, and which workers get a rank."""

from __future__ import annotations

from typing import Any

import pytest

from unetflow.errors import InputError, Interrupted, RankLost, StageError
from unetflow.runtime.rank import Place
from unetflow.runtime.ranks import Rank, run_ranks
from unetflow.runtime.rankwatch import _Heard, is_final
from unetflow.runtime.seats import choose_seats, gather_workers


def count_up(rank: Rank, *, steps: int) -> int:
    for step in range(steps):
        if rank.should_stop():
            return step
        rank.emit({"step": step, "rank": rank.number, "world": rank.world})
    return steps


def test_events_and_the_result_come_back() -> None:
    events: list[dict[str, Any]] = []
    assert run_ranks(count_up, {"steps": 3}, on_event=events.append) == 3
    assert [e["step"] for e in events] == [0, 1, 2]
    assert {(e["rank"], e["world"]) for e in events} == {(0, 1)}


def test_a_stop_reaches_the_function() -> None:
    events: list[dict[str, Any]] = []
    steps = run_ranks(count_up, {"steps": 9}, on_event=events.append, should_stop=lambda: len(events) >= 2)
    assert steps == 2


def test_its_exception_is_raised_as_it_is() -> None:
    def fail(*_: Any) -> None:
        raise InputError("the rule")

    with pytest.raises(InputError, match="the rule"):
        run_ranks(fail, {})


def test_the_first_gpu_serves_a_call_in_this_process() -> None:
    assert run_ranks(lambda rank: rank.device, {}, accelerators=lambda: ["gpu a", "gpu b"]) == 0
    assert run_ranks(lambda rank: rank.device, {}, accelerators=list) is None


def seats(places: dict[str, Place], most: int = 99) -> list[tuple[str, int | None, int]]:
    chosen = choose_seats(places, most)
    assert [(seat.number, seat.world) for seat in chosen] == [(n, len(chosen)) for n in range(len(chosen))]
    return [(seat.worker, seat.device, seat.threads) for seat in chosen]


def test_each_gpu_gets_one_rank_although_every_worker_of_its_host_sees_it() -> None:
    both = Place("a", 2, ("gpu 1", "gpu 2"))
    assert seats({"w1": both, "w2": both, "w3": both}) == [("w1", 0, 3), ("w2", 1, 3)]
    same_name_elsewhere = {"w1": Place("a", 2, ("0",)), "w2": Place("b", 2, ("0",))}
    assert seats(same_name_elsewhere) == [("w1", 0, 2), ("w2", 0, 2)]


def test_workers_without_a_gpu_get_no_rank_where_others_have_one() -> None:
    assert seats({"w1": Place("a", 2, ()), "w2": Place("b", 2, ("gpu",))}) == [("w2", 0, 2)]


def test_ranks_share_the_threads_of_the_workers_of_their_host() -> None:
    places = {f"w{n}": Place("a" if n < 4 else "b", 1, ()) for n in range(5)}
    assert seats(places) == [(f"w{n}", None, 1) for n in range(5)]
    assert seats(places, most=2) == [("w0", None, 2), ("w1", None, 2)]


def test_only_what_another_try_may_mend_is_tried_again() -> None:
    assert not is_final(RankLost("")) and not is_final(RuntimeError("out of memory")) and not is_final(OSError(5, ""))
    assert is_final(InputError("")) and is_final(StageError("")) and is_final(OSError(28, "full"))
    assert is_final(ValueError("")) and is_final(KeyError("")) and is_final(FileNotFoundError(""))


def test_silence_is_measured_against_the_longest_before(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("unetflow.runtime.rankwatch.time.monotonic", lambda: now[0])
    heard = _Heard(silence=60, first_silence=900)

    def after(seconds: float) -> bool:
        now[0] += seconds
        return heard.is_overdue

    assert not after(899) and after(2)
    heard.hear(1, False)
    assert not after(59)
    heard.hear(1, False)  # a sign of life without a step is none of work
    assert after(2)
    heard.hear(2, False)
    assert not after(609) and after(2)  # ten times the 61 seconds of the step before
    heard.forgive(5)
    assert not heard.is_overdue


def test_a_stop_is_heard_while_workers_are_awaited() -> None:
    class Nobody:
        status = "running"

        def nthreads(self) -> dict[str, int]:
            return {}

    with pytest.raises(Interrupted, match="stopped while waiting"):
        gather_workers(Nobody(), 1, 600.0, 20.0, (), lambda: True)  # type: ignore[arg-type]
