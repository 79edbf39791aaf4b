"""From images to probabilities, one tile or a batch of tiles at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unetflow.nn.device import arithmetic, pick_device, pick_precision
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
        self._layout = memory_format(model.spec.dims)
        self._model = model.to(self.device, memory_format=self._layout).eval()  # type: ignore[call-overload]
        self._model.requires_grad_(False)

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
            if not tta:
                return _to_numpy(self._forward(image))
            ways = symmetries(self.spec)
            total = sum(_undo(way, self._forward(_apply(way, image))) for way in ways)
            assert isinstance(total, Tensor)
            return _to_numpy(total / len(ways))

    def each(self, images: Iterable[Floats], *, tta: bool = False, threads: int = 1) -> Iterator[Floats]:
        """Yield the probabilities of tiles in their order, several at once on a CPU.

        There, each forward pass has one thread to itself: on two, its sums would round otherwise
        than on one, and the result would depend on the machine.

        Parameters
        ----------
        images : iterable of ndarray
            Tiles as for `probabilities`; taken as they are needed.
        threads : int
            Forward passes at once on a CPU; a GPU does one after another.
        """
        if self.device.type != "cpu":
            yield from (self.probabilities(image, tta=tta) for image in images)
            return
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

    def _forward(self, image_BCS: Tensor) -> Tensor:
        logits = self._model(image_BCS.contiguous(memory_format=self._layout)).float()
        chance: Tensor = logits.softmax(1) if self.spec.head == "softmax" else logits.sigmoid()
        return chance


def _apply(way: Symmetry, values: Tensor) -> Tensor:
    return (values.transpose(-1, -2) if way.is_transposed else values).flip(way.flips)


def _undo(way: Symmetry, values: Tensor) -> Tensor:
    values = values.flip(way.flips)
    return values.transpose(-1, -2) if way.is_transposed else values


def _to_numpy(values: Tensor) -> Floats:
    result: Floats = values.contiguous().cpu().numpy()
    return result
