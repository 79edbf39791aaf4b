"""The patch store: training samples as rows of three arrays, one patch a chunk, many a shard.

::

    dataset.zarr/patches/train/image    (N, C, *S)       the network's input
                              /target   (N, *S_out)      uint8; (N, K, *S_out) for multilabel
                              /weight   like target      float16 on disk, float32 when read

A shard of patches has one writer, and is what training reads ahead.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import Box
from unetflow.storage import array as arrays
from unetflow.storage import store as stores
from unetflow.storage.array import AnyArray
from unetflow.storage.ngff import create_group

SHARD_BYTES = 2**26
NAMES = ("image", "target", "weight")


@dataclass(frozen=True)
class PatchStore:
    """Numbered patches of one split; a small record that travels to workers.

    Parameters
    ----------
    path, split : str
        The dataset, and ``train`` or ``validation``.
    count : int
        Number of patches.
    image_shape, target_shape : tuple of int
        Of one patch: ``(C, *S)``, and ``(*S_out)`` or ``(K, *S_out)``.
    image_dtype : str
    shard_size : int
        Patches a shard; the last shard may hold fewer.
    """

    path: str
    split: str
    count: int
    image_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    image_dtype: str
    shard_size: int

    def __len__(self) -> int:
        return self.count

    @property
    def n_shards(self) -> int:
        """Number of shards."""
        return -(-self.count // self.shard_size)

    def shard_range(self, shard_number: int) -> range:
        """Return the numbers of the patches of a shard."""
        if not 0 <= shard_number < self.n_shards:
            raise IndexError(f"shard {shard_number} of {self.n_shards}")
        start = shard_number * self.shard_size
        return range(start, min(start + self.shard_size, self.count))

    def read(self, numbers: Sequence[int]) -> tuple[AnyArray, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        """Return patches in the order of `numbers`, which may repeat.

        Returns
        -------
        image : (B, C, *S), as stored
        target : uint8, (B, *S_out) or (B, K, *S_out)
        weight : float32, like target
        """
        image, target, weight = (self._read(name, numbers) for name in NAMES)
        return image, target, weight.astype(np.float32)

    def write_shard(self, shard_number: int, image: AnyArray, target: AnyArray, weight: AnyArray) -> None:
        """Write all patches of one shard, in the order of their numbers."""
        rows = self.shard_range(shard_number)
        for name, data in zip(NAMES, (image, target, weight), strict=True):
            shape = (len(rows), *self._shape(name))
            if data.shape != shape:
                raise ValueError(
                    f"{name} of shard {shard_number} must have the shape {shape}, got {data.shape}"
                )
            if name == "weight":
                data = np.minimum(data, np.finfo(np.float16).max)
            stored = data.astype(self._dtype(name), copy=False)
            arrays.write_region(self._array(name), _rows(rows, shape), stored)

    def _read(self, name: str, numbers: Sequence[int]) -> AnyArray:
        shape = self._shape(name)
        out = np.empty((len(numbers), *shape), self._dtype(name))
        position = 0
        for rows in _runs(numbers):
            if not 0 <= rows.start < rows.stop <= self.count:
                raise IndexError(f"patches {rows.start} to {rows.stop - 1} of {self.count}")
            part = out[position : position + len(rows)]
            arrays.read_region(self._array(name), _rows(rows, part.shape), part)
            position += len(rows)
        return out

    def _array(self, name: str) -> str:
        return stores.join(self.path, "patches", self.split, name)

    def _shape(self, name: str) -> tuple[int, ...]:
        return self.image_shape if name == "image" else self.target_shape

    def _dtype(self, name: str) -> str:
        return {"image": self.image_dtype, "target": "uint8", "weight": "float16"}[name]


def create_patches(
    path: str | os.PathLike[str],
    split: str,
    *,
    count: int,
    image_shape: Sequence[int],
    image_dtype: str,
    target_shape: Sequence[int],
    overwrite: bool = False,
    shard_size: int | None = None,
) -> PatchStore:
    """Create the three arrays of a split in a dataset, which exists already.

    Parameters
    ----------
    shard_size : int, optional
        Patches a shard; absent: `rows_a_shard`.
    """
    path = stores.normalise(path)
    if count < 1:
        raise ValueError(f"a patch store needs at least 1 patch, got {count}")
    raw = math.prod(image_shape) * np.dtype(image_dtype).itemsize + 3 * math.prod(target_shape)
    size = shard_size or rows_a_shard(raw, count)
    patches = PatchStore(
        path, split, count, tuple(image_shape), tuple(target_shape), np.dtype(image_dtype).name, size
    )
    above = stores.join(path, "patches")
    if stores.find_node(above) is None:
        create_group(above)
    create_group(stores.join(above, split), overwrite=overwrite)
    for name in NAMES:
        shape = patches._shape(name)
        arrays.create(
            patches._array(name),
            shape=(count, *shape),
            chunk=(1, *shape),
            shard=(size, *shape),
            dtype=patches._dtype(name),
        )
    return patches


def rows_a_shard(patch_bytes: int, count: int) -> int:
    """Return how many patches make a shard: up to 64 MiB, but 32 shards at least, for as many workers."""
    return max(1, min(SHARD_BYTES // patch_bytes, -(-count // 32)))


def open_patches(path: str | os.PathLike[str], split: str) -> PatchStore:
    """Open the patches of a split.

    Raises
    ------
    InputError
        If the dataset has none.
    """
    path = stores.normalise(path)
    try:
        image, target = (arrays.open_array(stores.join(path, "patches", split, name)) for name in NAMES[:2])
    except InputError as cause:
        raise InputError(
            f"training needs the patches '{split}' of a dataset, got '{path}' ({cause}); "
            "run `unetflow prepare`"
        ) from None
    return PatchStore(
        path,
        split,
        image.shape[0],
        tuple(image.shape[1:]),
        tuple(target.shape[1:]),
        np.dtype(image.dtype).name,
        arrays.grid_of(image)[0],
    )


def _runs(numbers: Sequence[int]) -> list[range]:
    """Cut numbers into runs that ascend by one, each read at once."""
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, int(number) + 1)
        else:
            runs.append(range(int(number), int(number) + 1))
    return runs


def _rows(rows: range, shape: Sequence[int]) -> Box:
    return Box((rows.start, *(0,) * (len(shape) - 1)), (rows.stop, *shape[1:]))
