"""A preload of workers: each block of `segment` takes longer, so that something can happen in the middle."""

from __future__ import annotations

import os
import time
from typing import Any


def dask_setup(worker: Any) -> None:
    from unetflow.stages.predict import PredictBlock

    compute = PredictBlock.compute

    def slow(self: PredictBlock, *arguments: Any) -> Any:
        time.sleep(float(os.environ.get("SLOW_SECONDS", "0.5")))
        return compute(self, *arguments)

    PredictBlock.compute = slow  # type: ignore[method-assign]
