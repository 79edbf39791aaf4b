"""Codecs that say no before they decode: what a chunk may hold follows from its shape.

zarr decodes first and looks at the size afterwards: 33 kB of zstd may ask for a gigabyte, and a
truncated blosc chunk reads beyond its end. `header` looks at whole files; these look at the chunks
inside shards too, and stop a gzip stream where it grows too long.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from typing import Any

from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer

from unetflow.storage.header import check_blosc, check_zstd

_GZIP_WINDOW = 31  # zlib's way to ask for a gzip header and its checksum


class BoundedZstd(ZstdCodec):
    """zstd that compares the frame's content size with the chunk's."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        check_zstd(chunk_bytes[:18].to_bytes(), _n_bytes(chunk_spec))
        return await super()._decode_single(chunk_bytes, chunk_spec)


class BoundedBlosc(BloscCodec):
    """blosc that compares both sizes of the header with those that must be."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        check_blosc(chunk_bytes[:16].to_bytes(), len(chunk_bytes), _n_bytes(chunk_spec))
        return await super()._decode_single(chunk_bytes, chunk_spec)


class BoundedGzip(GzipCodec):
    """gzip that is inflated no further than the chunk is long."""

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return chunk_spec.prototype.buffer.from_bytes(inflate(chunk_bytes.to_bytes(), _n_bytes(chunk_spec)))


def bounded(codecs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Put codecs that check in the place of those that do not, inside shards too.

    Only the first codec of bytes is bounded: those after it see what is compressed already.
    """
    made: list[Any] = []
    is_first = False
    for codec in codecs:
        if isinstance(codec, ShardingCodec):
            codec = dataclasses.replace(codec, codecs=bounded(codec.codecs))
        elif is_first:
            codec = _bounded(codec)
        is_first = isinstance(codec, BytesCodec) and all(isinstance(c, TransposeCodec) for c in made)
        made.append(codec)
    return tuple(made)


def _bounded(codec: Any) -> Any:
    kinds = {ZstdCodec: BoundedZstd, BloscCodec: BoundedBlosc, GzipCodec: BoundedGzip}
    kind: Any = kinds.get(type(codec))
    return codec if kind is None else kind.from_dict(codec.to_dict())


def inflate(content: bytes, n_most: int) -> bytes:
    """Decompress gzip members, no more than ``n_most`` bytes.

    Raises
    ------
    ValueError
        If there are more, or the content ends too early; zlib.error for other damage.
    """
    parts: list[bytes] = []
    n_left = n_most
    while content:
        stream = zlib.decompressobj(_GZIP_WINDOW)
        parts.append(stream.decompress(content, n_left + 1))
        n_left -= len(parts[-1])
        if n_left < 0:
            raise ValueError(f"it holds more than the {n_most} bytes of voxels that a chunk has")
        if not stream.eof:
            raise ValueError("it ends too early")
        content = stream.unused_data
    return b"".join(parts)


def _n_bytes(spec: ArraySpec) -> int:
    return math.prod(spec.shape) * int(spec.dtype.to_native_dtype().itemsize)
