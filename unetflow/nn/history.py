"""``metrics.csv``: a row now and then, each step at most once even after a restart."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping
from pathlib import Path

from unetflow.failpoints import fail_point

COLUMNS = (
    "step", "epoch", "learning_rate", "loss", "gradient_norm",
    "validation_loss", "pixel_error", "dice", "iou", "adapted_rand_error", "seconds",
)  # fmt: skip


class History:
    """The rows of a training.

    Parameters
    ----------
    path : str or Path
        The file; made with its header where it is missing.
    step : int
        Where the training goes on: rows of later steps are dropped, for they come again.
    """

    def __init__(self, path: str | Path, step: int) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_history(self._path) if int(row["step"]) <= step]
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)
        fail_point("before-metrics")
        os.replace(temporary, self._path)

    def append(self, row: Mapping[str, float | int | None]) -> None:
        """Add a row; a column that is None or absent stays empty."""
        fail_point("before-row")
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(row)


def read_history(path: str | Path) -> list[dict[str, str]]:
    """Return the whole rows of a file as text by column; none where there is no file."""
    path = Path(path)
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    # A row cut short by a crash has columns without a value, or a step that is no number.
    return [row for row in rows if set(row) == set(COLUMNS) and None not in row.values()
            and (row["step"] or "").isdigit()]  # fmt: skip
