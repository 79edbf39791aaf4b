"""Signals become a flag."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from unetflow.errors import Interrupted
from unetflow.runtime.signals import STOP_SIGNALS, StopFlag, stop_on_signals, stop_requested


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_the_first_signal_raises_the_flag_and_nothing_else(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with stop_on_signals() as flag:
        assert not flag()
        os.kill(os.getpid(), number)
        assert flag()
        assert flag.reason == number.name
        assert stop_requested()
    assert signal.getsignal(number) is before
    assert not stop_requested()


def test_a_second_interrupt_stops_at_once_and_can_be_come_back_from() -> None:
    def press_twice() -> None:
        with stop_on_signals():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            signal.pause()

    with pytest.raises(Interrupted, match="second signal"):
        press_twice()


def test_a_second_termination_changes_nothing() -> None:
    with stop_on_signals() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert flag.reason == "SIGTERM"


def test_outside_the_main_thread_there_is_a_flag_without_signals() -> None:
    seen: list[StopFlag] = []

    def work() -> None:
        with stop_on_signals() as flag:
            seen.append(flag)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not seen[0]()
