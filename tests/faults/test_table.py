"""The table of docs/faults.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_every_case_has_a_test_that_is_there() -> None:
    rows = [line for line in (TESTS.parent / "docs" / "faults.md").read_text().splitlines() if line.startswith("| ")]
    cases: set[int] = set()
    for row in rows[1:]:
        numbers, *_, tests = [cell.strip() for cell in row.strip("|").split("|")]
        cases |= {int(number) for number in numbers.split(",")}
        named = re.findall(r"`([\w/]*test_\w+)`", tests)
        assert named, row
        for name in named:
            folder, _, file = name.rpartition("/")
            assert list((TESTS / (folder or "faults")).glob(f"{file}.py")) or list(
                (TESTS / "unit" / "storage").glob(f"{file}.py")
            ), name
    assert cases == set(range(1, 37))
