"""What each worker of a local cluster does first; Dask loads this module as a preload."""

from __future__ import annotations

import logging
import os
import signal
from pathlib import Path
from typing import Any

from unetflow.runtime.signals import STOP_SIGNALS

LOG_FOLDER = "UNETFLOW_LOG_FOLDER"


def dask_setup(worker: Any) -> None:
    """Leave signals to the driver, and log warnings to a file.

    A terminal sends Ctrl-C, and a batch system its SIGTERM, to every process of the job: a
    worker that obeyed would drop the block that the driver wants finished. A worker whose
    driver is gone ends by itself, and SIGKILL still ends it.
    """
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    folder = os.environ.get(LOG_FOLDER)
    if folder:
        handler = _LateFile(Path(folder, f"worker-{worker.name}.log"), delay=True)
        handler.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"))
        handler.setLevel(logging.WARNING)
        for name in ("unetflow", "distributed"):
            logging.getLogger(name).addHandler(handler)


class _LateFile(logging.FileHandler):
    """A log file that exists, with its folder, from the first record on: a refused command leaves none."""

    def _open(self) -> Any:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        return super()._open()
