"""A preload of workers: each block of `segment` takes longer, so that something can happen in the middle."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any


def dask_setup(worker: Any) -> None:
    from unetflow.stages.predict import PredictBlock

    compute = PredictBlock.compute

    file = os.environ.get("SLOW_WHILE")  # only as long as this file is there

    def slow(self: PredictBlock, *arguments: Any) -> Any:
        time.sleep(0.5 if file is None else 5.0 * Path(file).exists())
        return compute(self, *arguments)

    PredictBlock.compute = slow  # type: ignore[method-assign]
