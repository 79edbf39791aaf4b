"""The memory of one forward pass, added up from what `unetflow.nn.streaming` holds.

A tile flows through the network row by row, so that most of it is never there at once: the rows that wait
before each convolution and for their skip (`unetflow.row_stream` counts them), what one slab of rows makes
on its way, the image and the result. Nothing is allocated, and torch is not loaded.

Notes
-----
Held against the growth of a process in ``tests/unit/nn/test_forward_memory.py``.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from unetflow.row_stream import Planes, planes, rows_held, slab_rows

if TYPE_CHECKING:
    from unetflow.architecture import UNetSpec

Shape = tuple[int, ...]

# Features of a slab. On a processor they should stay in its cache; a GPU wants more to do at a time.
SLAB_BYTES = 8 * 2**20
SLAB_BYTES_GPU = 128 * 2**20


def forward_bytes(spec: UNetSpec, shape: Shape, *, itemsize: Literal[2, 4] = 4, slab_bytes: int = SLAB_BYTES) -> int:
    """Return the most bytes that one forward pass has in use at a time, without the weights.

    Parameters
    ----------
    spec : UNetSpec
    shape : tuple of int
        Input of the network, one that it takes (`UNetSpec.tile_input`).
    itemsize : {4, 2}
        Bytes of a feature: float32, or bf16 autocast.
    slab_bytes : int
        Features that go through a level at a time.

    Examples
    --------
    >>> from unetflow.architecture import UNetSpec
    >>> forward_bytes(UNetSpec.build(), (572, 572)) // 10**6
    246
    """
    ends = 4 * (spec.in_channels * math.prod(shape) + spec.out_channels * math.prod(spec.output_shape(shape)))
    slabs, plane = slab_rows(spec, shape, slab_bytes), planes(spec, shape)
    return ends + itemsize * (_held(spec, shape[0], slabs, plane) + _passing(spec, shape[0], slabs, plane))


def _held(spec: UNetSpec, n_rows: int, slabs: Shape, plane: Planes) -> int:
    """Return the values in all buffers of rows."""
    held = rows_held(spec, n_rows, slabs)
    width = 2 if spec.skip == "concat" else 1
    total = 0
    for level in range(spec.depth + 1):
        channels = spec.channels(level)
        first = spec.channels(level - 1) if level else spec.in_channels
        total += _volume(held.contract[level], plane.contract[level], (first, channels))
        if level < spec.depth:
            total += _volume(held.join[level], plane.join[level], (width * channels, channels, channels))
            total += held.skips[level] * plane.contract[level][-1] * channels
            total += held.ups[level] * plane.join[level][0] * spec.channels(level + 1)
    return total


def _volume(rows: tuple[int, ...], plane: tuple[int, ...], channels: tuple[int, ...]) -> int:
    return sum(math.prod(numbers) for numbers in zip(rows, plane, channels, strict=False))


def _passing(spec: UNetSpec, n_rows: int, slabs: Shape, plane: Planes) -> int:
    """Return the values that a slab makes on its way: features at every level, and the weights in oneDNN's order."""
    features = []
    for level, n in enumerate(slabs):
        rows = min(n, -(-n_rows // spec.stride(level)[0]))
        features.append(rows * plane.contract[level][1] * spec.channels(level))
    kernel = max(math.prod(kernel) * spec.channels(level) ** 2 for level, kernel in enumerate(spec.kernel))
    return sum(features) + 2 * max(features) + kernel


def weight_bytes(spec: UNetSpec) -> int:
    """Return the bytes of all weights and biases in float32.

    Examples
    --------
    >>> from unetflow.architecture import UNetSpec
    >>> weight_bytes(UNetSpec.build()) // 4
    31030658
    """
    width = 2 if spec.skip == "concat" else 1
    inputs = [spec.in_channels, *(spec.channels(level) for level in range(spec.depth))]
    per_channel = 3 if spec.norm != "none" else 1  # bias, and the norm's scale and shift
    total = 0

    def convolution(c_in: int, c_out: int, kernel: Shape, per_channel: int = 1) -> int:
        return c_out * (c_in * math.prod(kernel) + per_channel)

    for level, kernel in enumerate(spec.kernel):
        c = spec.channels(level)
        firsts = [inputs[level], *([width * c] if level < spec.depth else [])]
        total += sum(convolution(n, c, kernel, per_channel) + convolution(c, c, kernel, per_channel) for n in firsts)
    for level, window in enumerate(spec.pool):
        total += convolution(spec.channels(level + 1), spec.channels(level), window)
    if spec.extra_conv:
        total += convolution(spec.channels(0), spec.extra_conv, spec.kernel[0])
    return 4 * (total + convolution(spec.extra_conv or spec.channels(0), spec.out_channels, (1,) * spec.dims))
