"""Find a Zarr node by path or URL, and read and write its metadata documents.

Local files are put in place whole (`atomic`), so that no reader ever meets half a chunk. URLs go
through fsspec.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import json
import os
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import unquote, urlsplit

from zarr.abc.store import ByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import FsspecStore, LocalStore

from unetflow.errors import InputError
from unetflow.storage.atomic import write_whole

DOCUMENTS = ("zarr.json", ".zarray", ".zgroup", ".zattrs")

HEAD_BYTES = 18  # of a chunk file: as much as `header` wants to see

T = TypeVar("T")
Json = dict[str, Any]


@dataclass(frozen=True)
class Node:
    """What stands at a path: an array or a group, its metadata and its attributes."""

    path: str
    kind: Literal["array", "group"]
    zarr_format: Literal[2, 3]
    metadata: Json = field(repr=False)
    attributes: Json = field(repr=False)


def normalise(path: str | os.PathLike[str]) -> str:
    """Return an absolute local path, or a URL without a slash at its end.

    ``file://`` becomes a plain path: fsspec's local files are not written atomically.
    """
    text = os.fspath(path)
    if text.startswith("file://"):
        text = unquote(urlsplit(text).path)
    if is_url(text):
        return text.rstrip("/")
    return os.path.abspath(os.path.expanduser(text))


def is_url(path: str) -> bool:
    """Say whether a path is a URL, which fsspec reads."""
    return "://" in path


def join(path: str, *names: str) -> str:
    """Append names to a path or URL."""
    return "/".join([path.rstrip("/"), *(name.strip("/") for name in names)])


def parent(path: str) -> str:
    """Return the path or URL of the folder above; the root is its own parent."""
    head = path.rpartition("/")[0]
    return head if head and not head.endswith(("/", ":")) else path


class CheckedLocalStore(LocalStore):
    """A local store that looks at a chunk file before it is decoded.

    An empty file is damage: zarr takes an empty shard for a missing one, which is no damage.

    Attributes
    ----------
    check : callable or None
        Set where one array is read: takes the first bytes of a whole file and its length.
    is_blind : bool
        Set where one array is written: whole files replace what is there, unseen.
    """

    check: Callable[[bytes, int], None] | None = None
    is_blind: bool = False

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the content of a file, or None where there is none."""
        if self.is_blind:
            return None
        value = await super().get(key, prototype, byte_range)
        _look_at(value, self.check if byte_range is None else None)
        return value

    async def set(self, key: str, value: Buffer) -> None:
        """Put a file in place whole, and wait for the disk."""
        self._check_writable()
        content = memoryview(value.as_buffer_like()).cast("B")
        await asyncio.to_thread(write_whole, self.root / key, content)


class CheckedRemoteStore(FsspecStore):
    """The same for a store behind a URL."""

    check: Callable[[bytes, int], None] | None = None
    is_blind: bool = False

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return the content of a file, or None where there is none."""
        if self.is_blind:
            return None
        value = await super().get(key, prototype, byte_range)
        _look_at(value, self.check if byte_range is None else None)
        return value

    async def delete(self, key: str) -> None:
        """Remove a file, without first asking (which costs two requests more) whether it is there."""
        self._check_writable()
        with contextlib.suppress(FileNotFoundError):
            await self.fs._rm_file(f"{self.path}/{key}")


AnyStore = CheckedLocalStore | CheckedRemoteStore


def _look_at(value: Buffer | None, check: Callable[[bytes, int], None] | None) -> None:
    if value is None:
        return
    if len(value) == 0:
        raise ValueError("the file is empty")
    if check is not None:
        check(value[:HEAD_BYTES].to_bytes(), len(value))


def open_store(path: str, read_only: bool = True) -> AnyStore:
    """Return a store whose root is a normalised path or URL."""
    if not is_url(path):
        return CheckedLocalStore(path, read_only=read_only)
    try:
        # A remembered listing knows nothing of what workers wrote since.
        options = {} if "::" in path else {"use_listings_cache": False}
        store = CheckedRemoteStore.from_url(path, storage_options=options, read_only=read_only)
        assert isinstance(store, CheckedRemoteStore)
        return store
    except (ValueError, ImportError, OSError) as cause:
        raise InputError(
            f"a URL needs a protocol that fsspec knows and its package, got '{path}' ({cause}); "
            "use s3://, gs:// or https:// and `pip install unetflow[cloud]`"
        ) from cause


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on zarr's own event loop, where its stores live."""
    return sync(coroutine)


def read_bytes(path: str, name: str) -> bytes | None:
    """Return the content of a small file of a node, or None where there is none."""
    try:
        if not is_url(path):
            return Path(path, name).read_bytes()
        buffer = run(open_store(path).get(name, default_buffer_prototype()))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except Exception as cause:  # each protocol has its own errors for no network and no permission
        if is_url(path) and (isinstance(cause, PermissionError) or getattr(cause, "status", 0) == 403):
            return None  # a bucket that may not be listed says so of each missing key
        raise InputError(
            f"an input must be readable, got '{join(path, name)}' "
            f"({type(cause).__name__}: {cause}); check the path, permissions and credentials"
        ) from cause
    return None if buffer is None else buffer.to_bytes()


def read_document(path: str, name: str) -> Json | None:
    """Return a JSON document of a node, or None where there is none."""
    content = read_bytes(path, name)
    if content is None:
        return None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as cause:
        raise InputError(
            f"Zarr metadata must be JSON, got '{join(path, name)}' that is damaged ({cause}); "
            "restore the file or write the array anew"
        ) from cause
    if not isinstance(document, dict):
        raise InputError(f"Zarr metadata must be a JSON object, got '{join(path, name)}'; write it anew")
    return document


def find_node(path: str) -> Node | None:
    """Return the Zarr array or group at a normalised path, or None."""
    document = read_document(path, "zarr.json")
    if document is not None:
        kind = document.get("node_type")
        if document.get("zarr_format") != 3 or kind not in ("array", "group"):
            raise InputError(
                f"zarr.json must say zarr_format 3 and node_type array or group, got "
                f"'{join(path, 'zarr.json')}'; it is damaged or of a newer Zarr"
            )
        return Node(path, kind, 3, document, _mapping(document.get("attributes")))
    array = read_document(path, ".zarray")
    group = None if array is not None else read_document(path, ".zgroup")
    attributes = read_document(path, ".zattrs")
    if array is not None:
        return Node(path, "array", 2, array, attributes or {})
    if group is not None or attributes is not None:
        return Node(path, "group", 2, group or {}, attributes or {})
    return None


def read_node(path: str) -> Node:
    """Return the Zarr array or group at a normalised path, or say what is there instead."""
    node = find_node(path)
    if node is None:
        raise InputError(_nothing_at(path))
    return node


def list_names(path: str) -> list[str]:
    """Return the sorted names of the folders below a node; names that start with a dot are left out."""
    try:
        if not is_url(path):
            with os.scandir(path) as entries:
                return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith("."))
        names = run(_listed(open_store(path)))
    except (OSError, NotImplementedError, ValueError):
        return []  # no permission; plain https cannot list
    return sorted(name for name in names if not name.startswith(".") and name != "zarr.json")


async def _listed(store: Store) -> list[str]:
    return [name.strip("/") async for name in store.list_dir("")]


def write_document(path: str, name: str, document: Json) -> None:
    """Write a JSON document of a node, atomically on a local disk."""
    content = json.dumps(document, indent=2, sort_keys=True, allow_nan=False).encode()
    buffer = default_buffer_prototype().buffer.from_bytes(content)
    run(open_store(path, read_only=False).set(name, buffer))


def is_node(path: str) -> bool:
    """Say whether Zarr metadata stand at a path."""
    return any(read_bytes(path, name) is not None for name in DOCUMENTS)


def _mapping(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _nothing_at(path: str) -> str:
    """Say what stands at a path that holds no Zarr node, and what may have been meant."""
    rule = "a volume must be a Zarr array or an OME-Zarr image"
    if is_url(path):
        return f"{rule}, got '{path}', where no metadata are found; check address and permissions"
    if os.path.isfile(path):
        return f"{rule}, got the file '{path}'; make a Zarr of it with `unetflow convert`"
    if os.path.isdir(path):
        cure = "make a Zarr of it with `unetflow convert`"
        inside = [n for n in list_names(path) if is_node(join(path, n))]
        if inside:
            cure = f"inside it there is {', '.join(inside[:5])}"
        return f"{rule}, got the folder '{path}' without Zarr metadata; {cure}"
    folder = path
    while not os.path.isdir(folder):
        missing, folder = os.path.basename(folder), os.path.dirname(folder)
    near = difflib.get_close_matches(missing, os.listdir(folder), n=3, cutoff=0.5)
    cure = f"did you mean {' or '.join(near)}" if near else f"'{folder}' has no '{missing}'"
    return f"{rule}, got '{path}', which does not exist; {cure}"
