"""Layers through which rows flow: each keeps the rows that its next output needs.

Rows are the planes of an image or of features along the first spatial axis; see `unetflow.nn.streaming`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unetflow.nn.unet import ResizeConvolution, memory_format

_CONVOLVE: dict[int, Callable[..., Tensor]] = {2: functional.conv2d, 3: functional.conv3d}


class Band:
    """Some consecutive rows of an array in one buffer: new ones at the end, old ones dropped at the front."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._first = self._place = self._n = 0
        self._room = 0

    @property
    def stop(self) -> int:
        """Number of the row that comes next."""
        return self._first + self._n

    @property
    def n(self) -> int:
        """Number of rows held."""
        return self._n

    def begin(self, room: int) -> None:
        """Begin anew with row 0, in a buffer with room for that many rows."""
        self._first = self._place = self._n = 0
        self._room = room

    def extend(self, n: int, like: Tensor, width: int = 1) -> Tensor:
        """Return room for ``n`` rows more, shaped like a tensor but for ``width`` times its channels."""
        shape = (like.shape[0], width * like.shape[1], self._room, *like.shape[3:])
        buffer = self._buffer
        if self._n == 0 and (buffer is None or buffer.shape != shape or buffer.dtype != like.dtype):
            self._buffer = None
            layout = memory_format(like.ndim - 2)
            buffer = torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
            self._buffer, self._place = buffer, 0
        assert buffer is not None
        if self._place + self._n + n > self._room:
            held = buffer.narrow(2, self._place, self._n)
            buffer.narrow(2, 0, self._n).copy_(held.clone() if self._place < self._n else held)
            self._place = 0
        self._n += n
        return buffer.narrow(2, self._place + self._n - n, n)

    def rows(self, start: int, stop: int) -> Tensor:
        """Return rows ``start`` to ``stop``."""
        assert self._buffer is not None
        assert self._first <= start <= stop <= self.stop
        return self._buffer.narrow(2, self._place + start - self._first, stop - start)

    def held(self) -> Tensor:
        """Return all rows."""
        return self.rows(self._first, self.stop)

    def pad(self, n: int) -> None:
        """Append ``n`` rows of zeros to what is held."""
        if n:
            self.extend(n, self.held()).zero_()

    def drop(self, before: int) -> None:
        """Let the rows before a number go."""
        n = max(0, before - self._first)
        self._first += n
        self._place += n
        self._n -= n


class Chain:
    """Convolutions one after the other, each with its norm and the rows that wait before it.

    ReLU follows all but the last: whoever takes those rows applies it on the way to where they go.
    """

    def __init__(self, layers: list[nn.Module]) -> None:
        self._steps: list[tuple[Any, list[nn.Module]]] = []
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Conv3d):
                self._steps.append((layer, []))
            elif not isinstance(layer, nn.ReLU):
                self._steps[-1][1].append(layer)
        self._bands = [Band() for _ in self._steps]
        self._is_begun = [False for _ in self._steps]
        self.n_fed = 0

    def begin(self, rooms: Sequence[int]) -> None:
        """Forget all rows; each convolution has room for some before it."""
        for band, rows in zip(self._bands, rooms, strict=True):
            band.begin(rows)
        self._is_begun = [False for _ in self._steps]
        self.n_fed = 0

    def feed(self, rows: Tensor) -> None:
        """Take rows in."""
        self.room(rows.shape[2], rows, 1).copy_(rows)

    def room(self, n: int, like: Tensor, width: int) -> Tensor:
        """Return room for ``n`` rows, which the caller fills."""
        self.n_fed += n
        return self._room(0, n, like, width)

    def run(self, *, is_last: bool) -> Tensor | None:
        """Return the rows that can be computed now, before their ReLU; None where there are none."""
        rows: Tensor | None = None
        self.n_fed = 0
        for number, (convolution, norms) in enumerate(self._steps):
            if rows is not None:
                torch.clamp_min(rows, 0, out=self._room(number, rows.shape[2], rows, 1))
                rows = None
            band, ahead = self._bands[number], convolution.kernel_size[0] - 1
            if is_last:
                band.pad(convolution.padding[0])
            if band.n > ahead:
                rows = _convolve(convolution, band.held())
                band.drop(band.stop - ahead)
                for norm in norms:
                    rows = norm(rows)
        return rows

    def _room(self, number: int, n: int, like: Tensor, width: int) -> Tensor:
        before = self._steps[number][0].padding[0]
        if before and not self._is_begun[number]:
            self._bands[number].extend(before, like, width).zero_()
        self._is_begun[number] = True
        return self._bands[number].extend(n, like, width)


class Transposed:
    """An up-convolution whose windows do not overlap: each row from below stands alone."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def begin(self, room: int) -> None:
        """Nothing is held."""

    def __call__(self, rows: Tensor | None, *, is_last: bool) -> Tensor | None:
        """Return the rows before their ReLU."""
        return None if rows is None else self._layer(rows)


class Resized:
    """Rows repeated, and a convolution that looks ahead over one window."""

    def __init__(self, layer: ResizeConvolution) -> None:
        self._window, self._convolution = layer.window, layer.convolution
        self._band = Band()

    def begin(self, room: int) -> None:
        """Forget all rows."""
        self._band.begin(room)

    def __call__(self, rows: Tensor | None, *, is_last: bool) -> Tensor | None:
        """Return the rows before their ReLU."""
        ahead = self._window[0] - 1
        if rows is not None:
            factors = [float(n) for n in self._window]
            wide = functional.interpolate(rows, scale_factor=factors, mode="nearest-exact")
            wide = functional.pad(wide, [length for n in reversed(self._window[1:]) for length in (0, n - 1)])
            self._band.extend(wide.shape[2], wide).copy_(wide)
        if is_last:
            self._band.pad(ahead)
        if self._band.n <= ahead:
            return None
        fine: Tensor = self._convolution(self._band.held())
        self._band.drop(self._band.stop - ahead)
        return fine


def _convolve(convolution: Any, rows: Tensor) -> Tensor:
    """Convolve without padding along the rows: the band holds it."""
    padding = (0, *convolution.padding[1:])
    weight, bias = convolution.weight, convolution.bias
    is_plain = rows.device.type == "cpu" and rows.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if is_plain and torch.backends.mkldnn.is_available():
        # Asked by name: of few channels or rows in 3-D, torch's own choice is another and takes ten times as long.
        ones = (1,) * len(padding)
        result: Tensor = torch.ops.aten.mkldnn_convolution(rows, weight, bias, padding, ones, ones, 1)
        return result
    return _CONVOLVE[rows.ndim - 2](rows, weight, bias, padding=padding)
