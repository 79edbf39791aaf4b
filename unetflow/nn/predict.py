"""From images to probabilities, one tile or a batch of tiles at a time."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unetflow.forward_memory import SLAB_BYTES, SLAB_BYTES_GPU
from unetflow.nn.device import arithmetic, pick_device, pick_precision
from unetflow.nn.streaming import RowStream
from unetflow.nn.symmetry import Symmetry, symmetries
from unetflow.nn.unet import UNet, memory_format

Floats = npt.NDArray[np.float32]


class Predictor:
    """A model on its device, ready for inference.

    Parameters
    ----------
    model : UNet
        Moved to the device and switched to inference; no longer trainable afterwards.
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"cuda:N"``.
    precision : str
        ``"auto"``, ``"float32"`` (TF32 off) or ``"bf16"``.

    Raises
    ------
    InputError
        If device or precision are unknown or not there.
    """

    def __init__(self, model: UNet, device: str = "auto", precision: str = "auto") -> None:
        self.spec = model.spec
        self.device = pick_device(device)
        self.precision = pick_precision(precision, self.device)
        layout = memory_format(model.spec.dims)
        self._model = model.to(self.device, memory_format=layout).eval()  # type: ignore[call-overload]
        self._model.requires_grad_(False)
        self._streams: list[RowStream] = []  # those that no pass uses now

    def probabilities(self, image_CS: Floats, *, tta: bool = False) -> Floats:
        """Return the probabilities of one tile.

        Parameters
        ----------
        image_CS : ndarray of float32, shape (C, [Z, ]Y, X)
            Normalised image.
        tta : bool
            Average over flips and transpositions (`unetflow.nn.symmetry`); the tile
            must then have the network's `UNetSpec.symmetric_halo`.

        Returns
        -------
        ndarray of float32, shape (K, *S_out)
            Soft-max over the K classes, or one sigmoid a channel.
        """
        result: Floats = self.probabilities_batch(image_CS[None], tta=tta)[0]
        return result

    def probabilities_batch(self, image_BCS: Floats, *, tta: bool = False) -> Floats:
        """Return the probabilities (B, K, *S_out) of tiles (B, C, *S)."""
        with torch.inference_mode(), arithmetic(self.precision, self.device):
            image = torch.from_numpy(np.ascontiguousarray(image_BCS, np.float32)).to(self.device)
            return _to_numpy(self._chances(image, tta))

    def _chances(self, image: Tensor, tta: bool) -> Tensor:
        if not tta:
            return self._forward(image)
        ways = symmetries(self.spec)
        total = sum(_undo(way, self._forward(_apply(way, image))) for way in ways)
        assert isinstance(total, Tensor)
        return total / len(ways)

    def each(
        self, images: Iterable[Floats], *, tta: bool = False, threads: int = 1, batch: int = 1
    ) -> Iterator[Floats]:
        """Yield the probabilities of tiles in their order, several at once.

        On a CPU each forward pass has one thread to itself: on two, its sums would round otherwise
        than on one, and the result would depend on the machine. On a GPU tiles go in batches, and
        while it computes one the next is made and the last one comes back.

        Parameters
        ----------
        images : iterable of ndarray
            Tiles as for `probabilities`, all of one shape; taken as they are needed.
        threads : int
            Forward passes at once on a CPU.
        batch : int
            Tiles of a forward pass on a GPU. A last batch is filled up, so that no tile's sums depend on
            how many came with it.
        """
        if self.device.type == "cpu":
            yield from self._each_in_threads(images, tta, threads)
        else:
            yield from self._each_in_batches(images, tta, batch)

    def _each_in_threads(self, images: Iterable[Floats], tta: bool, threads: int) -> Iterator[Floats]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
                running: deque[Future[Floats]] = deque()
                for image in images:
                    running.append(pool.submit(self.probabilities, image, tta=tta))
                    if len(running) >= threads:
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
        finally:
            torch.set_num_threads(before)

    def _each_in_batches(self, images: Iterable[Floats], tta: bool, batch: int) -> Iterator[Floats]:
        """Keep one batch on the device while the host is busy with its neighbours."""
        waiting: _OnItsWay | None = None
        source = iter(images)
        while group := list(itertools.islice(source, batch)):
            sent = self._send(group, tta, batch)
            if waiting is not None:
                yield from waiting.arrive()
            waiting = sent
        if waiting is not None:
            yield from waiting.arrive()

    def _send(self, group: list[Floats], tta: bool, batch: int) -> _OnItsWay:
        """Start a batch on the device, and its result on the way back, without waiting for either."""
        filled = np.stack([*group, *[group[-1]] * (batch - len(group))])
        host = torch.from_numpy(np.ascontiguousarray(filled, np.float32))
        is_gpu = self.device.type == "cuda"
        with torch.inference_mode(), arithmetic(self.precision, self.device):
            image = (host.pin_memory() if is_gpu else host).to(self.device, non_blocking=is_gpu)
            chance = self._chances(image, tta)[: len(group)].contiguous()
            if not is_gpu:
                return _OnItsWay(chance, None)
            back = torch.empty(chance.shape, dtype=chance.dtype, pin_memory=True)
            back.copy_(chance, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        return _OnItsWay(back, arrived)

    def _forward(self, image_BCS: Tensor) -> Tensor:
        shape = (len(image_BCS), self.spec.out_channels, *self.spec.output_shape(image_BCS.shape[2:]))
        chances = torch.empty(shape, dtype=torch.float32, device=image_BCS.device)
        with self._stream() as stream:
            start = 0
            for logits in stream(image_BCS):
                rows = logits.float()
                rows = rows.softmax(1) if self.spec.head == "softmax" else rows.sigmoid_()
                chances.narrow(2, start, rows.shape[2]).copy_(rows)
                start += rows.shape[2]
        return chances

    @contextmanager
    def _stream(self) -> Iterator[RowStream]:
        """Lend a stream of rows; its buffers serve the next tile too."""
        try:
            stream = self._streams.pop()
        except IndexError:
            stream = RowStream(self._model, SLAB_BYTES_GPU if self.device.type == "cuda" else SLAB_BYTES)
        yield stream
        self._streams.append(stream)


@dataclass(frozen=True)
class _OnItsWay:
    """Probabilities that the device is still working on or sending back."""

    values: Tensor
    arrived: Any

    def arrive(self) -> Iterator[Floats]:
        """Wait, and yield each tile's probabilities."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return iter(self.values.numpy())


def _apply(way: Symmetry, values: Tensor) -> Tensor:
    return (values.transpose(-1, -2) if way.is_transposed else values).flip(way.flips)


def _undo(way: Symmetry, values: Tensor) -> Tensor:
    values = values.flip(way.flips)
    return values.transpose(-1, -2) if way.is_transposed else values


def _to_numpy(values: Tensor) -> Floats:
    result: Floats = values.contiguous().cpu().numpy()
    return result
