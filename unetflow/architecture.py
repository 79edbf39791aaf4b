"""The U-Net as a record of numbers, and the size arithmetic that follows from it.

Everything that depends on the network's shape is worked out here and nowhere else: which
input sizes it takes, how much smaller the output is, how far an output voxel sees, and how
much context a tile needs. Whole numbers only; no torch.

References
----------
.. [1] Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image
   Segmentation. MICCAI 2015, figure 1 and section 2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from unetflow.errors import InputError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class UNetSpec:
    """The numbers that a U-Net is drawn from.

    Levels are counted from 0 (full resolution) to ``depth`` (the bottom).

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the image; channels of the logits (1 for a sigmoid of two classes).
    dims : {2, 3}
        Number of axes that the network sees.
    depth : int
        Number of poolings.
    base_channels : int
        Channels of level 0; they double with each level.
    padding : {"valid", "same"}
        Unpadded as in the paper, or zero-padded.
    upsample : {"transpose", "resize"}
        Transposed convolution, or nearest and then a convolution of the pooling's width
        that is padded at the far end. Both halve the channels.
    skip : {"concat", "sum"}
        Join the cropped encoder features by concatenation or, like an FCN, by a sum.
    norm : {"none", "batch", "layer"}
        Normalisation after each 3x3 convolution.
    dropout : float
        Probability, applied at the end of the contracting path (its last two levels).
    head : {"softmax", "sigmoid"}
    pool : tuple of tuple of int
        Pooling window (and stride) per axis of each of the ``depth`` poolings.
    kernel : tuple of tuple of int
        Odd kernel per axis of each of the ``depth + 1`` levels.
    extra_conv : int
        Channels of one more convolution with ReLU before the head; 0 for none
        (the Keras variant has 2).

    Examples
    --------
    >>> paper = UNetSpec.build(dims=2)
    >>> paper.output_shape((572, 572)), paper.total_stride, paper.margin
    ((388, 388), (16, 16), (92, 92))
    """

    in_channels: int
    out_channels: int
    dims: int
    depth: int
    base_channels: int
    padding: Literal["valid", "same"]
    upsample: Literal["transpose", "resize"]
    skip: Literal["concat", "sum"]
    norm: Literal["none", "batch", "layer"]
    dropout: float
    head: Literal["softmax", "sigmoid"]
    pool: tuple[Shape, ...]
    kernel: tuple[Shape, ...]
    extra_conv: int = 0

    def __post_init__(self) -> None:
        _check(self)

    @classmethod
    def build(
        cls,
        *,
        in_channels: int = 1,
        out_channels: int = 2,
        dims: int = 2,
        depth: int = 4,
        base_channels: int = 64,
        padding: Literal["valid", "same"] = "valid",
        upsample: Literal["transpose", "resize"] = "transpose",
        skip: Literal["concat", "sum"] = "concat",
        norm: Literal["none", "batch", "layer"] = "none",
        dropout: float = 0.5,
        head: Literal["softmax", "sigmoid"] = "softmax",
        pool: Sequence[Sequence[int]] | None = None,
        kernel: int | Sequence[int] | Sequence[Sequence[int]] | None = None,
        extra_conv: int = 0,
    ) -> UNetSpec:
        """Fill in what is absent: 2x2 pooling, 3x3 kernels, the paper's numbers."""
        if pool is None:
            pool = [(2,) * dims] * depth
        return cls(
            in_channels,
            out_channels,
            dims,
            depth,
            base_channels,
            padding,
            upsample,
            skip,
            norm,
            dropout,
            head,
            tuple(tuple(int(p) for p in window) for window in pool),
            _kernels(kernel, dims, depth),
            extra_conv,
        )

    @classmethod
    def from_dict(cls, numbers: dict[str, Any]) -> UNetSpec:
        """Rebuild a record from the JSON that `to_dict` gives."""
        try:
            return cls.build(**numbers)
        except (TypeError, OverflowError) as cause:  # the second for a length that is Infinity
            raise InputError(f"a model's architecture record has a key or value of no use: {cause}") from None

    def to_dict(self) -> dict[str, Any]:
        """Return the record as plain JSON types."""
        return {
            name: [list(item) for item in value] if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def channels(self, level: int) -> int:
        """Return the number of feature channels of a level."""
        return self.base_channels << level

    def stride(self, level: int) -> Shape:
        """Return the product of the poolings above ``level``, per axis."""
        return tuple(
            math.prod(window[axis] for window in self.pool[:level]) for axis in range(self.dims)
        )

    @property
    def total_stride(self) -> Shape:
        """Stride of the bottom level in input voxels: the network's period per axis."""
        return self.stride(self.depth)

    @property
    def margin(self) -> Shape:
        """Voxels by which the output is smaller than the input at each end, per axis."""
        if self.padding == "same":
            return (0,) * self.dims
        return tuple(self._shrink(axis) // 2 for axis in range(self.dims))

    def _shrink(self, axis: int) -> int:
        width = [(self.kernel[level][axis] - 1) * self.stride(level)[axis] for level in range(self.depth + 1)]
        extra = self.kernel[0][axis] - 1 if self.extra_conv else 0
        return int(4 * sum(width[:-1]) + 2 * width[-1] + extra)

    def accepts(self, shape: Sequence[int]) -> bool:
        """Say whether an input of this shape fits every pooling and leaves an output."""
        return len(shape) == self.dims and all(
            self._output_length(axis, n) > 0 for axis, n in enumerate(shape)
        )

    def output_shape(self, shape: Sequence[int]) -> Shape:
        """Return the shape of the output for an input of ``shape``.

        Raises
        ------
        InputError
            If the network does not take that shape; the next good one is named.
        """
        if not self.accepts(shape):
            raise InputError(
                f"an input of this network must fit its {self.depth} poolings and leave an output, "
                f"got {tuple(shape)}; use {self.round_up(shape)}"
            )
        return tuple(self._output_length(axis, n) for axis, n in enumerate(shape))

    def round_up(self, shape: Sequence[int]) -> Shape:
        """Return the smallest input shape that the network takes and that is not smaller."""
        if len(shape) != self.dims:
            raise InputError(f"a {self.dims}-D network needs {self.dims} lengths, got {tuple(shape)}")
        rounded = []
        for axis, n in enumerate(shape):
            length = max(1, int(n))
            while self._output_length(axis, length) < 1:
                length += 1
            rounded.append(length)
        return tuple(rounded)

    def _output_length(self, axis: int, n: int) -> int:
        """Follow one axis through the network; 0 where it does not fit."""
        loss = 0 if self.padding == "same" else 1
        lengths = []
        for level in range(self.depth):
            n -= 2 * loss * (self.kernel[level][axis] - 1)
            lengths.append(n)
            if n < 1 or n % self.pool[level][axis]:
                return 0
            n //= self.pool[level][axis]
        n -= 2 * loss * (self.kernel[self.depth][axis] - 1)
        for level in reversed(range(self.depth)):
            if n < 1:
                return 0
            n = n * self.pool[level][axis] - 2 * loss * (self.kernel[level][axis] - 1)
        if self.extra_conv:
            n -= loss * (self.kernel[0][axis] - 1)
        return max(0, n)

    @property
    def halo(self) -> tuple[Shape, Shape]:
        """Context before and after the kept voxels of a tile, so that cuts leave no trace.

        Tiles start on multiples of `total_stride` counted from the volume's origin. Then
        the value of each kept voxel is that of one forward pass over the whole volume:
        it saw no artificial padding, and every pooling window stood where it would stand.
        """
        if self.padding == "valid":
            spoilt = [self._spoilt_by_resize(axis) for axis in range(self.dims)]
            return self.margin, tuple(m + s for m, s in zip(self.margin, spoilt, strict=True))
        reach = [self._reach(axis) for axis in range(self.dims)]
        before = tuple(-(-b // s) * s for (b, _), s in zip(reach, self.total_stride, strict=True))
        after = tuple(-(-a // s) * s for (_, a), s in zip(reach, self.total_stride, strict=True))
        return before, after

    @property
    def symmetric_halo(self) -> tuple[Shape, Shape]:
        """A halo that also serves a mirrored or turned tile: as long before as after."""
        margin, stride = self.margin, self.total_stride
        longest = [max(b, a) - m for b, a, m in zip(*self.halo, margin, strict=True)]
        halo = tuple(
            m + -(-n // s) * s for m, n, s in zip(margin, longest, stride, strict=True)
        )
        return halo, halo

    def _spoilt_by_resize(self, axis: int) -> int:
        """Count far-end output voxels that saw the padding of the up-sampling convolution."""
        spoilt = 0
        if self.upsample == "resize":
            for window in reversed(self.pool):
                spoilt = spoilt * window[axis] + window[axis] - 1
        return spoilt

    def _reach(self, axis: int) -> tuple[int, int]:
        """Return how far the first and the last voxel of a stride-aligned range see outwards."""
        last = self.total_stride[axis] - 1
        return -self._seen_by(axis, 0)[0], self._seen_by(axis, last)[1] - last

    def _seen_by(self, axis: int, position: int) -> tuple[int, int]:
        """Return the first and the last input voxel that an output voxel depends on."""
        low = high = position
        radius = [(k[axis] - 1) // 2 for k in self.kernel]
        if self.extra_conv:
            low, high = low - radius[0], high + radius[0]
        for level in range(self.depth):
            low, high = low - 2 * radius[level], high + 2 * radius[level]
            window = self.pool[level][axis]
            high += window - 1 if self.upsample == "resize" else 0
            low, high = low // window, high // window
        low, high = low - 2 * radius[-1], high + 2 * radius[-1]
        for level in reversed(range(self.depth)):
            window = self.pool[level][axis]
            low, high = low * window, high * window + window - 1
            low, high = low - 2 * radius[level], high + 2 * radius[level]
        return low, high

    def tile_input(self, kept: Sequence[int], *, symmetric: bool = False) -> Shape:
        """Return the input shape of a tile that keeps ``kept`` voxels per axis."""
        before, after = self.symmetric_halo if symmetric else self.halo
        return self.round_up(
            [b + k + a for b, k, a in zip(before, kept, after, strict=True)]
        )

    def activation_bytes(self, shape: Sequence[int]) -> int:
        """Return a generous bound of the features at level 0, float32, in bytes: for the choice of patches.

        Inference is planned by `unetflow.forward_memory`, which counts the rows that the network holds.
        """
        width = 2 if self.skip == "concat" else 1
        return 4 * math.prod(shape) * (self.base_channels * (width + 3) + self.out_channels * 2)


def _kernels(
    kernel: int | Sequence[int] | Sequence[Sequence[int]] | None, dims: int, depth: int
) -> tuple[Shape, ...]:
    if kernel is None:
        kernel = 3
    if isinstance(kernel, int):
        return ((kernel,) * dims,) * (depth + 1)
    if all(isinstance(k, int) for k in kernel):
        return (tuple(int(k) for k in kernel),) * (depth + 1)  # type: ignore[arg-type]
    return tuple(tuple(int(n) for n in k) for k in kernel)  # type: ignore[union-attr]


_CHOICES = {
    "padding": ("valid", "same"),
    "upsample": ("transpose", "resize"),
    "skip": ("concat", "sum"),
    "norm": ("none", "batch", "layer"),
    "head": ("softmax", "sigmoid"),
}


def _check(spec: UNetSpec) -> None:
    for name, known in _CHOICES.items():
        if getattr(spec, name) not in known:
            raise InputError(f"{name} must be one of {', '.join(known)}, got '{getattr(spec, name)}'")
    if spec.dims not in (2, 3):
        raise InputError(f"dims must be 2 or 3, got {spec.dims}")
    for name in ("in_channels", "out_channels", "base_channels", "depth"):
        if getattr(spec, name) < 1:
            raise InputError(f"{name} must be at least 1, got {getattr(spec, name)}")
    if len(spec.pool) != spec.depth or any(
        len(window) != spec.dims or min(window) < 1 for window in spec.pool
    ):
        raise InputError(
            f"pool needs {spec.depth} windows (the depth) of {spec.dims} lengths, got "
            f"{[list(w) for w in spec.pool]}; for instance {[[2] * spec.dims] * spec.depth}"
        )
    if len(spec.kernel) != spec.depth + 1 or any(
        len(k) != spec.dims or any(n < 1 or n % 2 == 0 for n in k) for k in spec.kernel
    ):
        raise InputError(
            f"kernel needs odd lengths on {spec.dims} axes, once or for each of {spec.depth + 1} "
            f"levels, got {[list(k) for k in spec.kernel]}; for instance {[3] * spec.dims}"
        )
    if not 0 <= spec.dropout < 1:
        raise InputError(f"dropout must be at least 0 and below 1, got {spec.dropout}")
