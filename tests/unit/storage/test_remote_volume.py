"""Arrays and groups behind a URL: made, made anew, written whole, removed with care."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import numpy as np
import pytest

from unetflow.errors import InputError
from unetflow.geometry import Box
from unetflow.storage import array as arrays
from unetflow.storage import folders, ngff, store
from unetflow.storage.objects import Objects
from unetflow.storage.store import CheckedRemoteStore
from unetflow.storage.volume import create_array, open_volume


@pytest.fixture
def url() -> Iterator[str]:
    yield f"memory://{uuid.uuid4().hex}/out.zarr"
    arrays.invalidate()


def test_what_is_made_anew_keeps_the_run_s_own_folder_and_nothing_else(url: str) -> None:
    ngff.create_group(url, {"n": 1})
    create_array(f"{url}/0", axes="yx", shape=(8, 8), dtype="uint8", chunk=(4, 4)).write(
        Box((0, 0), (8, 8)), np.ones((8, 8), np.uint8)
    )
    Objects(f"{url}/.unetflow").put("lock", b"mine")
    with pytest.raises(InputError, match="must not exist yet"):
        ngff.create_group(url, {"n": 2})
    ngff.create_group(url, {"n": 2}, overwrite=True)
    assert Objects(url).names() == [".unetflow", "zarr.json"]
    assert Objects(f"{url}/.unetflow").get("lock") == b"mine"
    assert ngff.get_attributes(url) == {"n": 2}


def test_what_is_no_zarr_is_not_removed(url: str) -> None:
    Objects(url).put("notes.txt", b"mine")
    with pytest.raises(InputError, match="with other files"):
        ngff.create_group(url, {}, overwrite=True)
    assert Objects(url).get("notes.txt") == b"mine"


@pytest.mark.parametrize("where", ["local", "remote"])
def test_metadata_are_removed_last(
    where: str, url: str, tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = url if where == "remote" else f"{tmp_path}/out.zarr"
    create_array(path, axes="yx", shape=(8, 8), dtype="uint8", chunk=(4, 4)).write(
        Box((0, 0), (8, 8)), np.ones((8, 8), np.uint8)
    )
    removed: list[str] = []
    monkeypatch.setattr(folders, "remove", lambda path: removed.append(store.join(path).rpartition("/")[2]))
    folders.clear(path, overwrite=True)
    assert removed == ["c", "zarr.json"]


@pytest.mark.parametrize("shard", [None, (4, 8)])
def test_a_box_is_replaced_unseen_and_disappears_when_it_holds_nothing(
    url: str, shard: tuple[int, int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    volume = create_array(url, axes="yx", shape=(8, 8), dtype="uint8", chunk=(4, 4), shard=shard)
    box = Box((0, 0), (4, 8))
    volume.write(box, np.full((4, 8), 3, np.uint8))
    name = Objects(f"{url}/c/0").names()[0]
    Objects(f"{url}/c/0").put(name, b"the remains of an interrupted write")

    def fail(*arguments: object, **names: object) -> None:
        raise AssertionError("a whole shard was read before it was written")

    with monkeypatch.context() as patch:
        patch.setattr(CheckedRemoteStore.__mro__[1], "get", fail)
        volume.write(box, np.full((4, 8), 5, np.uint8))
    assert (volume.read(box) == 5).all()
    volume.write(box, np.zeros((4, 8), np.uint8))
    assert not volume.read(box).any()
    assert Objects(f"{url}/c").names() == []


def test_an_array_that_another_process_made_anew_is_not_read_through_an_old_handle(url: str) -> None:
    create_array(url, axes="yx", shape=(8, 8), dtype="uint8", chunk=(4, 4))
    assert open_volume(url).read(Box((0, 0), (8, 8))).shape == (1, 8, 8)
    kept = arrays._open
    documents = {}
    create_array(url, axes="yx", shape=(16, 8), dtype="float32", chunk=(8, 8), overwrite=True, fill_value=7)
    documents["new"] = Objects(url).get("zarr.json")
    create_array(url, axes="yx", shape=(8, 8), dtype="uint8", chunk=(4, 4), overwrite=True)
    open_volume(url).read(Box((0, 0), (8, 8)))  # the handle is kept
    assert kept.cache_info().currsize > 0
    Objects(url).put("zarr.json", documents["new"] or b"")  # behind this process's back
    volume = open_volume(url)
    assert (volume.read(Box((0, 0), (16, 8))) == 7).all()
