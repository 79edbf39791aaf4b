"""Arrays of the host as tensors on the device, copied while the device still computes.

On a GPU the thread that makes batches also copies them, from pinned memory and on a stream of its
own; the training step then waits for nothing but the end of that copy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from unetflow.nn.dataset import Batch


class Placed(NamedTuple):
    """A batch on the device: image (B, C, *S), target and weight (B, [K, ]*S_out).

    ``numbers`` are the places of its rows in the endless sequence of samples; ``event`` tells when
    the copies are done.
    """

    image: Tensor
    target: Tensor
    weight: Tensor
    numbers: tuple[int, ...]
    event: Any = None

    def rows(self, first: int, stop: int) -> Placed:
        """Return some rows."""
        part = slice(first, stop)
        return Placed(self.image[part], self.target[part], self.weight[part], self.numbers[part])

    def wait(self) -> Placed:
        """Let the current stream of the device wait until the batch is there."""
        if self.event is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.event)
            for tensor in (self.image, self.target, self.weight):
                tensor.record_stream(stream)  # its memory is not given away while the step reads it
        return self


class Placement:
    """Where and in which layout tensors go.

    Parameters
    ----------
    device : torch.device
    layout : torch.memory_format
        Of images; weights of multilabel targets have it too.
    dims : int
        Number of spatial axes.
    """

    def __init__(self, device: torch.device, layout: torch.memory_format, dims: int) -> None:
        self._device, self._layout, self._dims = device, layout, dims
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def put(self, array: Any) -> Tensor:
        """Return a NumPy array as a tensor on the device; one of the host may share its memory."""
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if tensor.ndim == self._dims + 2 and tensor.is_floating_point():
            tensor = tensor.contiguous(memory_format=self._layout)
        if self._stream is not None:
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def place(self, batch: Batch) -> Placed:
        """Copy a batch, beside what the device does meanwhile."""
        if self._stream is None:
            return Placed(self.put(batch.image), self.put(batch.target), self.put(batch.weight), batch.numbers)
        with torch.cuda.stream(self._stream):
            image, target, weight = self.put(batch.image), self.put(batch.target), self.put(batch.weight)
            event = torch.cuda.Event()
            event.record(self._stream)
        return Placed(image, target, weight, batch.numbers, event)
