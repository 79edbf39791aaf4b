"""The metrics file has a header once and a row a step, whatever happened on the way."""

from __future__ import annotations

from pathlib import Path

from unetflow.nn.history import COLUMNS, History, read_history


def test_rows_after_the_step_gone_on_from_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    history = History(path, 0)
    for step in (5, 10, 15):
        history.append({"step": step, "loss": 0.5})
    History(path, 10).append({"step": 15, "loss": 0.25, "dice": None})
    rows = read_history(path)
    assert [(row["step"], row["loss"], row["dice"]) for row in rows] == [
        ("5", "0.5", ""),
        ("10", "0.5", ""),
        ("15", "0.25", ""),
    ]
    assert path.read_text().splitlines()[0] == ",".join(COLUMNS)
    assert path.read_text().count("step") == 1


def test_a_row_cut_short_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    History(path, 0).append({"step": 5})
    with path.open("a") as file:
        file.write("6,0.1,0.")
    assert [row["step"] for row in read_history(path)] == ["5"]
    History(path, 9).append({"step": 10})
    assert [row["step"] for row in read_history(path)] == ["5", "10"]
