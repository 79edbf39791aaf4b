"""Digests: the same input, the same digest; any of its files or numbers changed, another."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from unetflow.geometry import Box
from unetflow.storage import digest as module
from unetflow.storage.volume import Volume, create_array, open_volume


@pytest.fixture
def volume(tmp_path: Path) -> Volume:
    made = create_array(
        tmp_path / "a", axes="yx", shape=(16, 16), dtype="uint8", chunk=(4, 4), voxel_size=(1, 1)
    )
    made.write(made.box, np.ones((16, 16), "uint8"))
    return made


def test_a_digest_is_of_the_input_and_not_of_the_look_at_it(volume: Volume) -> None:
    before = volume.digest()
    volume.read(volume.box)
    assert open_volume(volume.path).digest() == before
    assert len(before) == 64


def test_every_changed_file_changes_the_digest(volume: Volume) -> None:
    seen = {volume.digest()}
    chunk = Path(volume.path, "c", "1", "2")
    os.utime(chunk, ns=(1, 1))
    seen.add(volume.digest())
    chunk.write_bytes(chunk.read_bytes() + b"x")
    os.utime(chunk, ns=(1, 1))
    seen.add(volume.digest())
    chunk.unlink()
    seen.add(volume.digest())
    seen.add(open_volume(volume.path, voxel_size=(2, 2)).digest())
    document = Path(volume.path, "zarr.json")
    document.write_text(document.read_text() + "\n")
    seen.add(open_volume(volume.path).digest())
    assert len(seen) == 6


def test_a_huge_volume_is_judged_by_a_thousand_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    huge = create_array(tmp_path / "a", axes="zyx", shape=(10**7,) * 3, dtype="uint8", chunk=(1,) * 3)
    keys = module._some_keys(huge.path)
    assert len(keys) == module.MAX_FILES
    assert keys == module._some_keys(huge.path)
    assert huge.digest() == open_volume(huge.path).digest()
    assert not huge.read(Box((10**6,) * 3, (10**6 + 2,) * 3)).any()
