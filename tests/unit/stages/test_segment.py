"""What `segment` asks of its workers once all blocks are done."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unetflow.stages.segment import _threads_of_a_worker
from unetflow.stages.work import Conditions, Work


class Silent:
    """A client whose workers are there and do not answer."""

    def scheduler_info(self, n_workers: int) -> dict[str, Any]:
        return {"workers": {"tcp://127.0.0.1:1": {}}}

    def run(self, *_: Any, **__: Any) -> Any:
        raise self.error

    def __init__(self, error: Exception) -> None:
        self.error = error


@pytest.mark.parametrize("error", [TimeoutError(), OSError("closed")])
def test_a_worker_that_does_not_tell_its_threads_ends_no_finished_run(error: Exception) -> None:
    work = Work("segment", SimpleNamespace(), Conditions(Silent(error)))
    assert _threads_of_a_worker(work) == 1
