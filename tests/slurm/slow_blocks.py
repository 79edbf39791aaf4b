"""A preload of workers: each block of `segment` takes half a second more, so that something can happen meanwhile."""

from __future__ import annotations

import time
from typing import Any


def dask_setup(worker: Any) -> None:
    from unetflow.stages.predict import PredictBlock

    compute = PredictBlock.compute

    def slow(self: PredictBlock, *arguments: Any) -> Any:
        time.sleep(0.5)
        return compute(self, *arguments)

    PredictBlock.compute = slow  # type: ignore[method-assign]
