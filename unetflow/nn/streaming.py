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

from collections.abc import Iterator

import torch
from torch import Tensor

from unetflow.nn.rows import Band, Chain, Resized, Transposed
from unetflow.nn.unet import ResizeConvolution, UNet, crop
from unetflow.row_stream import rows_held, skip_offsets, slab_rows


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
        self._contract = [Chain([*layers]) for layers in model.contract]  # type: ignore[misc]
        joined = [[*layers] for layers in model.join]  # type: ignore[misc]
        if model.spec.extra_conv:
            joined[0] += [*model.extra]  # type: ignore[misc]
        self._join = [Chain(layers) for layers in joined]
        self._ups: list[Transposed | Resized] = [
            Resized(up[0]) if isinstance(up[0], ResizeConvolution) else Transposed(up[0])  # type: ignore[index]
            for up in model.up
        ]
        self._skips = [Band() for _ in model.up]

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
        rows = crop(skip.rows(start, start + n), fine.shape[2:])
        if self.spec.skip == "concat":
            torch.cat([fine, rows], 1, out=join.room(n, fine, 2))
        else:
            torch.add(fine, rows, out=join.room(n, fine, 1))
        self._joined[level] += n
        self._drop(level)

    def _drop(self, level: int) -> None:
        """Let go of the rows of a skip that were pooled, and that are joined or never will be."""
        self._skips[level].drop(min(self._joined[level] + self._offsets[level], self._pooled[level]))
