"""Compare what a compressed chunk says of its own sizes with what they must be.

zarr decodes first and looks at the size afterwards: a file of 33 kB may ask for a gigabyte, and a
truncated blosc file reads beyond its end and gives wrong voxels without a word (numcodecs
issue 228). Both formats tell their sizes in the first bytes.

Notes
-----
Chunks inside shards are looked at by `bounded`; chunks with filters, and compressors of Zarr v2 other
than these two, by nobody.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import zarr

from unetflow.storage.store import Json, Node

Check = Callable[[bytes, int], None]
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def header_check(node: Node, array: zarr.Array[Any]) -> Check | None:
    """Return the check for an array's chunk files, or None where there is none.

    The check takes the first bytes of a file and the file's length, and raises ValueError.
    """
    name = _compressor(node)
    n_bytes = math.prod(array.chunks) * array.dtype.itemsize
    if name == "blosc":
        return lambda head, length: check_blosc(head, length, n_bytes)
    if name == "zstd":
        return lambda head, length: check_zstd(head, n_bytes)
    return None


def _compressor(node: Node) -> str:
    """Return the name of the one compressor of a chunk file, or nothing."""
    if node.zarr_format == 2:
        compressor: Json = node.metadata.get("compressor") or {}
        return "" if node.metadata.get("filters") else str(compressor.get("id", ""))
    names = [str(codec.get("name")) for codec in node.metadata["codecs"]]
    plain = [n for n in names if n not in ("transpose", "bytes")]
    return plain[0] if len(plain) == 1 else ""


def check_blosc(head: bytes, length: int, n_bytes: int) -> None:
    """Compare the sizes of a blosc header, before and after compression, with the file's and the chunk's."""
    raw, stored = int.from_bytes(head[4:8], "little"), int.from_bytes(head[12:16], "little")
    if len(head) < 16 or stored != length:
        raise ValueError(f"{length} bytes are stored, its header says {stored}")
    if raw != n_bytes:
        raise ValueError(f"its header says {raw} bytes of voxels, a chunk has {n_bytes}")


def check_zstd(head: bytes, n_bytes: int) -> None:
    """Read the frame content size (RFC 8878, section 3.1.1.1), where the frame tells it."""
    if head[:4] != _ZSTD_MAGIC or len(head) < 6:
        raise ValueError("it does not start as zstd does")
    descriptor = head[4]
    is_single_segment = bool(descriptor & 32)
    width = (1 if is_single_segment else 0, 2, 4, 8)[descriptor >> 6]
    start = 5 + (not is_single_segment) + (0, 1, 2, 4)[descriptor & 3]
    raw = int.from_bytes(head[start : start + width], "little") + (256 if width == 2 else 0)
    if width and raw != n_bytes:
        raise ValueError(f"its header says {raw} bytes of voxels, a chunk has {n_bytes}")
