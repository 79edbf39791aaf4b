"""A driver process: ``python drive_blocks.py FOLDER N_BLOCKS SECONDS`` as the command line would be."""

from __future__ import annotations

import sys
from pathlib import Path

from block_tasks import Marked

from unetflow.errors import Interrupted
from unetflow.geometry import BlockGrid, Box
from unetflow.runtime.blockwise import run_pass
from unetflow.runtime.cluster import open_client
from unetflow.runtime.signals import stop_on_signals


def main(folder: str, n_blocks: str, seconds: str) -> int:
    """Return 75 after a stop, as the commands do."""

    def record(number: int, report: dict[str, object]) -> None:
        Path(folder, f"recorded-{number}-x").touch()

    try:
        with stop_on_signals() as stop, open_client("local", workers=2) as client:
            grid = BlockGrid(Box.of_shape((int(n_blocks),)), (1,))
            task = Marked(folder, float(seconds))
            run_pass(task, grid, client=client, record=record, name="drive", should_stop=stop)
    except Interrupted as error:
        print(error)
        return 75
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
