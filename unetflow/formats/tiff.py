"""TIFF, BigTIFF, OME-TIFF and ImageJ stacks, read page by page, strip by strip, tile by tile."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile

from unetflow.errors import InputError
from unetflow.formats.source import Array, Source, numeric_dtype
from unetflow.formats.tiff_metadata import axes_of, voxel_size_of
from unetflow.geometry import Box


@dataclass(frozen=True)
class Tiff(Source):
    """The first series of a TIFF file at full resolution.

    Notes
    -----
    Palette files give their indices: microscopes store grey images under a colour table.
    """

    def read(self, box: Box) -> Array:
        """Return the voxels of a box over all stored axes, native-endian."""
        file = _opened(self.path, os.stat(self.path).st_mtime_ns)
        if file.shape != self.shape:
            raise ValueError(f"{self.path} was {self.shape} when planned, and is {file.shape} now")
        if file.mapped is not None:
            return np.array(file.mapped[box.slices], dtype=self.dtype, order="C")
        n = _n_leading_axes(file.series)
        within_page = Box(box.start[n:], box.stop[n:])
        out = np.zeros(box.shape, self.dtype)
        for index in np.ndindex(*box.shape[:n]):
            position = tuple(i + a for i, a in zip(index, box.start[:n], strict=True))
            number = int(np.ravel_multi_index(position, self.shape[:n])) if n else 0
            page = file.series.pages[number]
            if page is not None:  # OME metadata may announce pages that no file holds
                out[index] = _read_page(page, self.shape[n:], within_page)
        return out


def open_tiff(path: str) -> Tiff:
    """Look at a TIFF file's tags; OME and ImageJ metadata give axes and voxel size.

    Raises
    ------
    InputError
        If it is no TIFF, is damaged or holds no image.
    """
    try:
        with tifffile.TiffFile(path) as file:
            if not file.series:
                raise InputError(f"a TIFF must hold an image, got {path} without one; save it again")
            series = file.series[0]
            shape = tuple(int(n) for n in series.shape)
            axes = axes_of(series.axes)
            dtype = numeric_dtype(series.dtype, path)
            is_planewise = series.dataoffset is None and not series.keyframe.is_tiled
            return Tiff(path, shape, dtype, axes, voxel_size_of(file, axes), is_planewise)
    except InputError:
        raise
    except Exception as cause:  # tifffile raises many kinds on damaged tags
        raise InputError(
            f"a TIFF must be one that tifffile reads, got {path}: {cause}; save it again"
        ) from None


class _OpenFile:
    """A file that a worker keeps open between blocks, and closes when it is forgotten."""

    def __init__(self, path: str) -> None:
        self.file = tifffile.TiffFile(path)
        self.series = self.file.series[0]
        self.shape = tuple(int(n) for n in self.series.shape)
        self.mapped: Array | None = None
        if self.series.dataoffset is not None:  # all pages in a row, uncompressed
            dtype = np.dtype(self.series.dtype).newbyteorder(self.file.byteorder)
            self.mapped = np.memmap(path, dtype, "r", self.series.dataoffset, self.shape)

    def __del__(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


@functools.lru_cache(maxsize=8)
def _opened(path: str, changed: int) -> _OpenFile:
    return _OpenFile(path)


def _n_leading_axes(series: Any) -> int:
    """Count the axes of a series that number its pages."""
    for n in range(series.ndim + 1):
        lead, page = series.shape[:n], series.shape[n:]
        if math.prod(lead) == len(series.pages) and math.prod(page) == math.prod(series.keyframe.shape):
            return n
    raise ValueError(f"pages of {series.keyframe.shape} do not make up a series of {series.shape}")


def _read_page(page: Any, shape: tuple[int, ...], box: Box) -> Array:
    """Read a box of one page of ``shape``."""
    axes = page.keyframe.axes
    if axes not in ("YX", "YXS", "SYX") or tuple(page.keyframe.shape) != shape:
        whole: Array = page.asarray(maxworkers=1).reshape(shape)
        return whole[box.slices]
    out = np.full(box.shape, page.keyframe.nodata or 0, page.keyframe.dtype)
    window = {letter: slice(a, b) for letter, a, b in zip(axes, box.start, box.stop, strict=True)}
    samples = window.get("S", slice(0, 1))
    as_yxs = {"YX": out[..., None], "YXS": out, "SYX": np.moveaxis(out, 0, -1)}[axes]
    for sample, y, x, segment in _segments(page, window["Y"], window["X"], samples):
        if axes == "YXS":
            segment = segment[..., samples]
            target = as_yxs
        else:
            target = as_yxs[..., sample - samples.start :][..., :1]
        height, width = segment.shape[:2]
        rows = slice(max(y, window["Y"].start), min(y + height, window["Y"].stop))
        columns = slice(max(x, window["X"].start), min(x + width, window["X"].stop))
        part = segment[rows.start - y : rows.stop - y, columns.start - x : columns.stop - x]
        rows = slice(rows.start - window["Y"].start, rows.stop - window["Y"].start)
        columns = slice(columns.start - window["X"].start, columns.stop - window["X"].start)
        target[rows, columns] = part
    return out


def _segments(
    page: Any, rows: slice, columns: slice, samples: slice
) -> Iterator[tuple[int, int, int, Array]]:
    """Decode the strips or tiles that touch a window: sample, first row, first column, voxels (Y, X, S)."""
    keyframe = page.keyframe
    height = keyframe.tilelength if keyframe.is_tiled else keyframe.rowsperstrip
    width = keyframe.tilewidth if keyframe.is_tiled else keyframe.imagewidth
    n_rows, n_columns = -(-keyframe.imagelength // height), -(-keyframe.imagewidth // width)
    tables: dict[str, Any] = {}
    if keyframe.compression in (6, 7, 34892, 33007):  # the kinds of JPEG
        tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
    planes = range(samples.start, samples.stop) if keyframe.axes == "SYX" else range(1)
    handle = page.parent.filehandle
    if handle.closed:  # the other files of a multi-file OME-TIFF
        handle.open()
    for plane in planes:
        for r in range(rows.start // height, -(-rows.stop // height)):
            for c in range(columns.start // width, -(-columns.stop // width)):
                index = (plane * n_rows + r) * n_columns + c
                if page.databytecounts[index] == 0:
                    continue
                with handle.lock:
                    handle.seek(page.dataoffsets[index])
                    data = handle.read(page.databytecounts[index])
                segment = keyframe.decode(data, index, **tables)[0]
                yield plane, r * height, c * width, segment[0]
