"""The memory of one forward pass, worked out by walking the network step by step.

`forward_bytes` follows `unetflow.nn.unet.UNet.forward` and `unetflow.nn.predict.Predictor`: which
tensors are alive at each step, from the tile that is copied out of a block to the probabilities
that come back. Nothing is allocated, and torch is not loaded.

::

    level 0   image -> conv -> conv ----------- skip ------------> concatenated -> conv -> conv -> head
                                 | pool                              ^ up              most is alive here,
    bottom                     conv -> conv -------------------------+                 with the skip or after it

Notes
-----
Held against the growth of a process in ``tests/unit/nn/test_forward_memory.py``. Buffers below
`HEAP_BYTES` come from a heap that keeps what was freed (`unetflow.runtime.environment.ALLOCATOR`):
its highest level is added to the larger buffers that live at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from unetflow.architecture import UNetSpec

Shape = tuple[int, ...]

# glibc never maps smaller buffers: 2**25 is the highest threshold that it takes.
HEAP_BYTES = 2**25
# Gaps between buffers on the heap: 20 to 30 MB in each of 16 networks (torch 2.13, glibc 2.36).
_MOST_GAPS_BYTES = 24_000_000


@dataclass(frozen=True, slots=True)
class _Tensor:
    channels: int
    shape: Shape
    itemsize: int
    is_last: bool = True  # channels-last in memory

    @property
    def nbytes(self) -> int:
        return self.channels * math.prod(self.shape) * self.itemsize


@dataclass(slots=True)
class _Meter:
    """Bytes alive now and at most; small buffers on a heap, large ones mapped."""

    heap: int = 0
    heap_peak: int = 0
    mapped: int = 0
    peak: int = 0

    def take(self, n_bytes: int) -> None:
        if n_bytes < HEAP_BYTES:
            self.heap += n_bytes
            self.heap_peak = max(self.heap_peak, self.heap)
        else:
            self.mapped += n_bytes
        gaps = min(self.heap_peak // 4, _MOST_GAPS_BYTES)
        self.peak = max(self.peak, self.heap_peak + gaps + self.mapped)

    def free(self, n_bytes: int) -> None:
        if n_bytes < HEAP_BYTES:
            self.heap -= n_bytes
        else:
            self.mapped -= n_bytes


class _Walk:
    """One forward pass: each method is a layer that takes a tensor and frees what it has read."""

    def __init__(self, spec: UNetSpec, itemsize: int) -> None:
        self.spec = spec
        self.itemsize = itemsize
        self.meter = _Meter()
        self.image: _Tensor | None = None

    def new(self, channels: int, shape: Shape, itemsize: int | None = None, *, is_last: bool = True) -> _Tensor:
        tensor = _Tensor(channels, shape, itemsize or self.itemsize, is_last)
        self.meter.take(tensor.nbytes)
        return tensor

    def free(self, *tensors: _Tensor) -> None:
        for tensor in tensors:
            self.meter.free(tensor.nbytes)

    def cast(self, x: _Tensor, itemsize: int) -> list[_Tensor]:
        """Autocast copies what a layer does not compute in."""
        return [] if x.itemsize == itemsize else [self.new(x.channels, x.shape, itemsize)]

    def layer(self, x: _Tensor, channels: int, shape: Shape, kernel: Shape) -> _Tensor:
        """Convolve; what exists only meanwhile are casts, reordered weights and unfolded columns."""
        meanwhile = [*self.cast(x, self.itemsize), self.new(x.channels * channels, kernel)]
        is_native = self.is_native(x, kernel)
        is_whole_copy = x.channels > 1 and (x.is_last == is_native) and (self.spec.dims == 3 or not is_native)
        if is_whole_copy:
            meanwhile.append(self.new(x.channels, x.shape))
        if is_native and max(kernel) > 1:
            meanwhile.append(self.new(x.channels * math.prod(kernel), shape))
        out = self.new(channels, shape, is_last=not is_native or self.spec.dims == 2)
        self.free(*meanwhile)
        return out

    def is_native(self, x: _Tensor, kernel: Shape) -> bool:
        """Say whether torch takes its own convolution, not oneDNN's: it unfolds the input first.

        That is `ConvParams::use_mkldnn` of torch 2.6 to 2.13 for one image and one thread. In 3-D it
        looks at channels and the first two axes only, so the first convolution of a small tile is one.
        """
        if self.itemsize != 4 or min(kernel[-2:]) > 3:
            return False
        return max(kernel) == 1 or x.channels * math.prod(x.shape[:2]) <= 20480

    def convolve(self, x: _Tensor, channels: int, level: int) -> _Tensor:
        kernel = self.spec.kernel[level]
        loss = 0 if self.spec.padding == "same" else 1
        shape = tuple(n - loss * (k - 1) for n, k in zip(x.shape, kernel, strict=True))
        out = self.layer(x, channels, shape, kernel)
        if x is not self.image:
            self.free(x)
        return out

    def normalise(self, x: _Tensor) -> _Tensor:
        """Layer norm computes in float32 under autocast; the ReLU after it works in place."""
        itemsize = 4 if self.spec.norm == "layer" else x.itemsize
        copies = self.cast(x, itemsize)
        out = self.new(x.channels, x.shape, itemsize)
        self.free(x, *copies)
        return out

    def convolutions(self, x: _Tensor, level: int) -> _Tensor:
        for _ in range(2):
            x = self.convolve(x, self.spec.channels(level), level)
            if self.spec.norm != "none":
                x = self.normalise(x)
        return x

    def pool(self, x: _Tensor, level: int) -> _Tensor:
        """Torch notes where each maximum stood, in int64; what was pooled stays as the skip."""
        shape = tuple(n // w for n, w in zip(x.shape, self.spec.pool[level], strict=True))
        out = self.new(x.channels, shape, x.itemsize)
        self.free(self.new(x.channels, shape, 8))
        return out

    def up(self, x: _Tensor, level: int) -> _Tensor:
        window, channels = self.spec.pool[level], self.spec.channels(level)
        shape = tuple(n * w for n, w in zip(x.shape, window, strict=True))
        if self.spec.upsample == "transpose":
            out = self.layer(x, channels, shape, window)
        else:
            wide = self.new(x.channels, shape, x.itemsize)
            padded = self.new(x.channels, tuple(n + w - 1 for n, w in zip(shape, window, strict=True)), x.itemsize)
            self.free(wide)
            out = self.layer(padded, channels, shape, window)
            self.free(padded)
        self.free(x)
        return out

    def fuse(self, x: _Tensor, skip: _Tensor) -> _Tensor:
        if self.spec.skip == "sum":
            self.free(skip)
            return x
        itemsize = max(x.itemsize, skip.itemsize)
        copies = self.cast(x, itemsize)
        out = self.new(x.channels + skip.channels, x.shape, itemsize)
        self.free(x, skip, *copies)
        return out

    def predict(self, shape: Shape) -> None:
        """Go all the way, as the predictor does."""
        spec = self.spec
        tile = self.new(spec.in_channels, shape, 4)
        # One channel is channels-last as it stands; the caller holds the image all the time.
        self.image = x = tile if spec.in_channels == 1 else self.new(spec.in_channels, shape, 4)
        skips = []
        for level in range(spec.depth):
            x = self.convolutions(x, level)
            skips.append(x)
            x = self.pool(x, level)
        x = self.convolutions(x, spec.depth)
        for level in reversed(range(spec.depth)):
            x = self.convolutions(self.fuse(self.up(x, level), skips.pop()), level)
        if spec.extra_conv:
            x = self.convolve(x, spec.extra_conv, 0)
        logits = self.layer(x, spec.out_channels, x.shape, (1,) * spec.dims)
        self.free(x)
        chances = [self.new(spec.out_channels, x.shape, 4) for _ in range(1 + (spec.out_channels > 1))]
        self.free(logits, *chances)


def forward_bytes(spec: UNetSpec, shape: Shape, *, itemsize: Literal[2, 4] = 4) -> int:
    """Return the most bytes that one forward pass has in use at a time, without the weights.

    Parameters
    ----------
    spec : UNetSpec
    shape : tuple of int
        Input of the network, one that it takes (`UNetSpec.tile_input`).
    itemsize : {4, 2}
        Bytes of a feature: float32, or bf16 autocast.

    Examples
    --------
    >>> from unetflow.architecture import UNetSpec
    >>> forward_bytes(UNetSpec.build(), (572, 572)) // 10**6
    273
    """
    walk = _Walk(spec, itemsize)
    walk.predict(tuple(shape))
    return walk.meter.peak


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
