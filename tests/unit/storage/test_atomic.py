"""A file is whole under its name, and on the disk before anybody is told that it is there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from unetflow.storage.atomic import write_whole


def test_content_is_on_the_disk_before_the_name_and_the_name_before_the_return(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(file: int) -> None:
        seen.append(f"sync {Path(os.readlink(f'/proc/self/fd/{file}')).suffix or 'folder'}")
        fsync(file)

    def note_replace(old: Any, new: Any) -> None:
        seen.append(f"rename {Path(old).suffix} to {Path(new).name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_whole(tmp_path / "c" / "0", memoryview(b"voxels"))
    assert seen == ["sync .partial", "rename .partial to 0", "sync folder"]
    assert (tmp_path / "c" / "0").read_bytes() == b"voxels"
