"""Room for an output: refused when it cannot fit, told when it might."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from unetflow.errors import InputError
from unetflow.storage.room import check_room


def disk(monkeypatch: pytest.MonkeyPatch, *, free: int, free_files: int, files: int = 10**6) -> list[str]:
    """Let the disk have so many bytes and inodes free; what is asked about is listed."""
    asked: list[str] = []

    def statvfs(path: str) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(f_bavail=free // 512, f_frsize=512, f_files=files, f_favail=free_files)

    monkeypatch.setattr(os, "statvfs", statvfs)
    return asked


def test_figures_are_those_of_the_disk_that_the_output_goes_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = disk(monkeypatch, free=4_096_000, free_files=77)
    figures = check_room(tmp_path / "new" / "out.zarr", 5_000_000, 10)
    assert figures == {"size": "5.0 MB", "files": 10, "free": "4.1 MB", "free_files": 77}
    assert asked == [str(tmp_path)]


def test_a_disk_with_less_than_a_twentieth_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, free=512_000, free_files=1000)
    check_room(tmp_path / "out.zarr", 512_000 * 20, 1)
    with pytest.raises(InputError, match=r"room for at least a twentieth of the bytes.*512.* free.*; name another"):
        check_room(tmp_path / "out.zarr", 512_000 * 20 + 20, 1)


def test_a_disk_without_inodes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk(monkeypatch, free=10**9, free_files=50)
    check_room(tmp_path / "out.zarr", 1, 1000)
    with pytest.raises(InputError, match="a twentieth of the files, got 50 free .* for 1001"):
        check_room(tmp_path / "out.zarr", 1, 1001)


def test_a_file_system_without_a_limit_of_inodes_refuses_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, free=10**9, free_files=0, files=0)
    assert "free_files" not in check_room(tmp_path / "out.zarr", 1, 10**9)


def test_an_output_that_holds_something_already_is_not_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk(monkeypatch, free=0, free_files=0)
    (tmp_path / ".unetflow").mkdir()
    with pytest.raises(InputError):
        check_room(tmp_path, 10**9, 1)
    (tmp_path / "zarr.json").write_text("{}")
    assert check_room(tmp_path, 10**9, 1)["free"] == "0 B"


def test_a_bucket_has_room() -> None:
    assert check_room("memory://bucket/x.zarr", 10**15, 10**9) == {"size": "1000.0 TB", "files": 10**9}
