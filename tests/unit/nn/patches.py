"""Patches in memory, for tests of what learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass
class Patches:
    """A patch source that remembers what was read."""

    image: Array
    target: Array
    weight: Array
    shard_size: int = 4
    asked: list[list[int]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.image)

    def read(self, numbers: Sequence[int]) -> tuple[Array, Array, Array]:
        index = list(numbers)
        self.asked.append(index)
        return self.image[index], self.target[index], self.weight[index]


def numbered(n: int, shard_size: int = 4) -> Patches:
    """Patches whose every value is their number."""
    values = np.arange(n, dtype=np.uint8)
    image = np.broadcast_to(values[:, None, None, None], (n, 1, 4, 4)).copy()
    return Patches(image, image[:, 0].copy(), np.ones((n, 4, 4), np.float32), shard_size)


def squares(n: int, *, seed: int = 0, length: int = 16, dims: int = 2) -> Patches:
    """Bright noisy squares to be told from a dark ground; some voxels are ignored."""
    rng = np.random.default_rng(seed)
    target = np.zeros((n, *(length,) * dims), np.uint8)
    for one in target:
        start = rng.integers(0, length - 5, dims)
        one[tuple(slice(a, a + 5) for a in start)] = 1
    noise = rng.normal(0, 20, target.shape)
    image = np.clip(60 + 120 * target + noise, 0, 255).astype(np.uint8)[:, None]
    weight = np.where(rng.random(target.shape) < 0.1, 0, 1 + target).astype(np.float32)
    return Patches(image, target, weight)
