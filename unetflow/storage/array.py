"""Read and write regions of a Zarr array in its stored order, with damage told plainly.

Handles are cached per process: a worker opens each array once, however many blocks it does.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy.typing as npt
import zarr
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.core.array_spec import ArrayConfig
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata, ArrayV3Metadata
from zarr.storage import StorePath

from unetflow.errors import InputError
from unetflow.failpoints import fail_point
from unetflow.geometry import BlockGrid, Box
from unetflow.storage import folders
from unetflow.storage import store as stores
from unetflow.storage.bounded import bounded
from unetflow.storage.header import header_check
from unetflow.storage.store import Json, Node

ZSTD_LEVEL = 1
MAX_CHUNK_BYTES = 2**33
AnyArray = npt.NDArray[Any]


class CorruptChunkError(RuntimeError):
    """Report stored data that cannot be decoded: the array, the box, the chunk's key, the cause.

    Parameters
    ----------
    path : str
        The array.
    box : Box
        What was read, in the array's stored axis order.
    cause : Exception or str
    key : str, optional
        The first chunk (or shard) file that fails by itself.
    """

    def __init__(self, path: str, box: Box, cause: Exception | str, key: str = "") -> None:
        super().__init__(path, box, cause, key)
        self.path, self.box, self.cause, self.key = path, box, cause, key

    def __str__(self) -> str:
        at = f" in the file {self.key}" if self.key else ""
        return f"array {self.path}, voxels {self.box}: the stored data are damaged{at} ({self.cause})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.box, str(self.cause), self.key)


def open_array(path: str, *, version: str = "", writable: bool = False) -> zarr.Array[Any]:
    """Return the cached handle of an array; one that was written anew is opened anew.

    Behind a URL ``version`` tells one writing of its metadata from the next: any text that follows
    from shape, type and chunks. To ask the store at each call would cost a request.
    """
    return _open(path, (version,) if stores.is_url(path) else _stamp(path), writable)


def invalidate() -> None:
    """Forget all cached handles, for arrays behind a URL that were written anew."""
    _open.cache_clear()


def array_of(node: Node, store: Store) -> zarr.Array[Any]:
    """Make a handle from metadata that was read already.

    Raises
    ------
    InputError
        If the metadata are damaged, or ask for what cannot be read.
    """
    _refuse_transformers(node)
    try:
        metadata: ArrayV2Metadata | ArrayV3Metadata
        if node.zarr_format == 3:
            metadata = ArrayV3Metadata.from_dict(_with_plain_transpose(node.metadata))
            metadata = dataclasses.replace(metadata, codecs=bounded(metadata.codecs))
        else:
            metadata = ArrayV2Metadata.from_dict({**node.metadata, "attributes": node.attributes})
        config = ArrayConfig(order=getattr(metadata, "order", "C"), write_empty_chunks=False)
        array: zarr.Array[Any] = zarr.Array(zarr.AsyncArray(metadata, StorePath(store), config))
        _check_chunks(array)
    except InputError:
        raise
    except Exception as cause:  # zarr has a dozen classes for metadata that it cannot use
        raise InputError(
            f"Zarr metadata must be whole and of known types and codecs, got '{node.path}' "
            f"({type(cause).__name__}: {cause}); write the array anew with `unetflow convert`"
        ) from cause
    return array


def create(
    path: str,
    *,
    shape: Sequence[int],
    chunk: Sequence[int],
    shard: Sequence[int] | None,
    dtype: str,
    fill_value: float = 0,
    dimension_names: Sequence[str] | None = None,
    attributes: Json | None = None,
    overwrite: bool = False,
) -> None:
    """Create a Zarr v3 array, everything in its stored order.

    Chunks are zstd with its checksum and shard indexes carry a crc32c (zarr's defaults would
    not notice a flipped bit). Chunks that hold nothing but the fill value are not stored.
    """
    if shard is not None and any(s % c for s, c in zip(shard, chunk, strict=True)):
        good = tuple(math.ceil(s / c) * c for s, c in zip(shard, chunk, strict=True))
        raise InputError(
            f"a shard must be a multiple of the chunk {tuple(chunk)} on each axis, got "
            f"{tuple(shard)}; use {good}"
        )
    folders.clear(path, overwrite=overwrite)
    zarr.create_array(
        stores.open_store(path, read_only=False),
        shape=tuple(shape),
        chunks=tuple(chunk),
        shards=None if shard is None else tuple(shard),
        dtype=dtype,
        compressors=ZstdCodec(level=ZSTD_LEVEL, checksum=True),
        fill_value=fill_value,
        dimension_names=None if dimension_names is None else list(dimension_names),
        attributes=attributes,
        zarr_format=3,
    )
    if stores.is_url(path):
        invalidate()


def read_region(path: str, box: Box, out: AnyArray, version: str = "") -> None:
    """Decode a box straight into `out`, which may be a view in any memory order."""
    array = open_array(path, version=version)
    prototype = default_buffer_prototype()
    try:
        array.get_basic_selection(box.slices, out=prototype.nd_buffer.from_numpy_array(out))
    except Exception as cause:
        _raise_damage(path, array, box, cause)


def write_region(path: str, box: Box, data: AnyArray, version: str = "") -> None:
    """Encode and store a box that is made of whole shards (or chunks), and replace what was there."""
    fail_point("before-write")
    open_array(path, version=version, writable=True).set_basic_selection(box.slices, data)
    fail_point("after-write")


def grid_of(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the shape of what is stored as one file: the shard, or the chunk without shards."""
    return tuple(array.shards or array.chunks)


def chunk_key(array: zarr.Array[Any], index: Sequence[int]) -> str:
    """Return the name of the file that holds a shard (or chunk)."""
    return str(array.metadata.encode_chunk_key(tuple(int(i) for i in index)))


@lru_cache(maxsize=512)
def _open(path: str, stamp: tuple[int | str, ...], writable: bool) -> zarr.Array[Any]:
    node, store = stores.read_node(path), stores.open_store(path, read_only=not writable)
    array = array_of(node, store)
    store.check = header_check(node, array)
    # zarr reads a shard that exists before it writes one, even a whole one: that costs a request,
    # and it stumbles over the remains of an interrupted write.
    store.is_blind = writable
    return array


def _stamp(path: str) -> tuple[int, ...]:
    """Tell one writing of a local array's metadata from the next."""
    for name in ("zarr.json", ".zarray"):
        try:
            found = os.stat(f"{path}/{name}")
        except OSError:
            continue
        return found.st_ino, found.st_mtime_ns, found.st_size
    return ()


def _refuse_transformers(node: Node) -> None:
    transformers = node.metadata.get("storage_transformers")
    if transformers:
        names = ", ".join(str(t.get("name", t)) if isinstance(t, dict) else str(t) for t in transformers)
        raise InputError(
            f"a Zarr array must have no storage transformers, got '{node.path}' with {names}; "
            "copy it to plain chunks with the software that wrote it"
        )


def _with_plain_transpose(metadata: Json) -> Json:
    """Spell the transpose codec's old orders "C" and "F" (zarrita, 2023) as a permutation."""
    metadata = copy.deepcopy(metadata)
    n_axes = len(metadata["shape"])
    pending = list(metadata.get("codecs", []))
    while pending:
        codec = pending.pop()
        configuration = codec.get("configuration", {}) if isinstance(codec, dict) else {}
        pending += configuration.get("codecs", [])
        if isinstance(codec, dict) and codec.get("name") == "transpose":
            order = configuration.get("order")
            if order in ("C", "F"):
                configuration["order"] = list(range(n_axes))[:: 1 if order == "C" else -1]
    return metadata


def _check_chunks(array: zarr.Array[Any]) -> None:
    n_bytes = math.prod(array.chunks) * array.dtype.itemsize
    if min(array.chunks, default=1) < 1 or min(array.shape, default=0) < 0 or n_bytes > MAX_CHUNK_BYTES:
        raise ValueError(f"shape {array.shape} in chunks of {array.chunks}")


def _raise_damage(path: str, array: zarr.Array[Any], box: Box, cause: Exception) -> None:
    """Raise what a failed read means: trouble with the store as it is, else damage."""
    if isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is not None):
        raise cause
    key, own = _culprit(array, box)
    raise CorruptChunkError(path, box, own or cause, key) from cause


def _culprit(array: zarr.Array[Any], box: Box) -> tuple[str, Exception | None]:
    """Find the first file of a box that cannot be decoded by itself."""
    grid = BlockGrid(Box.of_shape(array.shape), grid_of(array))
    for block in grid.touching(box):
        try:
            array.get_basic_selection(block.inner.intersect(box).slices)
        except Exception as cause:
            return chunk_key(array, grid.index_of(block.number)), cause
    return "", None
