"""The U-Net's forward pass row by row: the same numbers in a fraction of the memory.

`UNet.forward` makes every layer's features of a whole tile at once: hundreds of megabytes each, which a
processor fetches from the system page by page and then from memory number by number. Here a tile flows
through the network in *rows*, its planes along the first spatial axis. Each convolution keeps the few last
rows that its next output needs, a skip waits until the path below has caught up, and everything else is
gone while it still lies in the cache. No row is computed twice, however long the tile::

    image rows -> conv, conv -> skip ............................> join, conv, conv -> head -> probabilities
                        pool -> conv, conv -> skip ..> join, conv, conv -> up
                                      pool -> conv, conv -> up

"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unetflow.nn.unet import ResizeConvolution, UNet, memory_format
from unetflow.row_stream import rows_held, skip_offsets, slab_rows

_CONVOLVE: dict[int, Callable[..., Tensor]] = {2: functional.conv2d, 3: functional.conv3d}


class RowStream:
    """A network in inference and the rows that it holds; one for each pass that runs at a time.

    Parameters
    ----------
    model : UNet
        In inference mode. Its weights are shared, not copied.
    slab_bytes : int
        Rows of about this many bytes go through a level at a time.
    """

    def __init__(self, model: UNet, slab_bytes: int) -> None:
        self.spec, self._model, self._slab_bytes = model.spec, model, slab_bytes
        self._contract = [_Chain([*layers]) for layers in model.contract]  # type: ignore[misc]
        joined = [[*layers] for layers in model.join]  # type: ignore[misc]
        if model.spec.extra_conv:
            joined[0] += [*model.extra]  # type: ignore[misc]
        self._join = [_Chain(layers) for layers in joined]
        self._ups: list[_Transposed | _Resized] = [
            _Resized(up[0]) if isinstance(up[0], ResizeConvolution) else _Transposed(up[0])  # type: ignore[index]
            for up in model.up
        ]
        self._skips = [_Band() for _ in model.up]

    def __call__(self, image_BCS: Tensor) -> Iterator[Tensor]:
        """Yield the logits (B, K, rows, *S_out[1:]) of an image (B, C, *S), the first rows first.

        Raises
        ------
        InputError
            If the network does not take images of shape S.
        """
        shape = tuple(image_BCS.shape[2:])
        self.spec.output_shape(shape)
        self._begin(shape)
        for start in range(0, shape[0], self._slabs[0]):
            stop = min(shape[0], start + self._slabs[0])
            self._contract[0].feed(image_BCS.narrow(2, start, stop - start))
            yield from self._down(0, is_last=stop == shape[0])

    def _begin(self, shape: tuple[int, ...]) -> None:
        """Forget the last image, and make room for the rows of this one."""
        spec = self.spec
        self._slabs = slab_rows(spec, shape, self._slab_bytes)
        held = rows_held(spec, shape[0], self._slabs)
        for chains, all_rooms in ((self._contract, held.contract), (self._join, held.join)):
            for chain, rooms in zip(chains, all_rooms, strict=True):
                chain.begin(rooms)
        for band, room in zip(self._skips, held.skips, strict=True):
            band.begin(room)
        for up, room in zip(self._ups, held.ups, strict=True):
            up.begin(room)
        self._offsets = skip_offsets(spec, shape[0])
        self._pooled, self._joined = [0] * spec.depth, [0] * spec.depth

    def _down(self, level: int, *, is_last: bool) -> Iterator[Tensor]:
        """Run what a level's contracting path was fed, and all that becomes possible after it."""
        chain = self._contract[level]
        if chain.n_fed < self._slabs[level] and not is_last:
            return
        features = chain.run(is_last=is_last)
        if level == self.spec.depth:
            yield from self._up(level - 1, None if features is None else features.relu_(), is_last=is_last)
            return
        skip, window = self._skips[level], self.spec.pool[level][0]
        if features is not None:
            torch.clamp_min(features, 0, out=skip.extend(features.shape[2], features))
        del features
        start = self._pooled[level]
        stop = start + (skip.stop - start) // window * window
        if stop > start:
            self._contract[level + 1].feed(self._model.pool[level](skip.rows(start, stop)))
            self._pooled[level] = stop
            self._drop(level)
        yield from self._down(level + 1, is_last=is_last)

    def _up(self, level: int, coarse: Tensor | None, *, is_last: bool) -> Iterator[Tensor]:
        """Run rows from below through a level's expanding path."""
        if level < 0:
            if coarse is not None:
                yield self._model.head(coarse)
            return
        most = max(1, self._slabs[level] // self.spec.pool[level][0])
        parts = (None,) if coarse is None else coarse.split(most, 2)
        del coarse
        for number, part in enumerate(parts, 1):
            ends = is_last and number == len(parts)
            fine = self._ups[level](part, is_last=ends)
            if fine is not None:
                self._fuse(level, fine.relu_())
            del fine
            features = self._join[level].run(is_last=ends)
            yield from self._up(level - 1, None if features is None else features.relu_(), is_last=ends)

    def _fuse(self, level: int, fine: Tensor) -> None:
        """Write rows from below, joined with those of their skip, to where the convolutions read."""
        n, skip, join = fine.shape[2], self._skips[level], self._join[level]
        start = self._joined[level] + self._offsets[level]
        rows = skip.rows(start, start + n)
        for axis, length in enumerate(fine.shape[3:], start=3):
            rows = rows.narrow(axis, (rows.shape[axis] - length) // 2, length)
        if self.spec.skip == "concat":
            torch.cat([fine, rows], 1, out=join.room(n, fine, 2))
        else:
            torch.add(fine, rows, out=join.room(n, fine, 1))
        self._joined[level] += n
        self._drop(level)

    def _drop(self, level: int) -> None:
        """Let go of the rows of a skip that were pooled, and that are joined or never will be."""
        self._skips[level].drop(min(self._joined[level] + self._offsets[level], self._pooled[level]))


class _Band:
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


class _Chain:
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
        self._bands = [_Band() for _ in self._steps]
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


class _Transposed:
    """An up-convolution whose windows do not overlap: each row from below stands alone."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    def begin(self, room: int) -> None:
        """Nothing is held."""

    def __call__(self, rows: Tensor | None, *, is_last: bool) -> Tensor | None:
        """Return the rows before their ReLU."""
        return None if rows is None else self._layer(rows)


class _Resized:
    """Rows repeated, and a convolution that looks ahead over one window."""

    def __init__(self, layer: ResizeConvolution) -> None:
        self._window, self._convolution = layer.window, layer.convolution
        self._band = _Band()

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
    if rows.device.type == "cpu" and rows.dtype == torch.float32 and torch.backends.mkldnn.is_available():
        # Asked by name: of few channels or rows in 3-D, torch's own choice is another and takes ten times as long.
        ones = (1,) * len(padding)
        result: Tensor = torch.ops.aten.mkldnn_convolution(rows, weight, bias, padding, ones, ones, 1)
        return result
    return _CONVOLVE[rows.ndim - 2](rows, weight, bias, padding=padding)
