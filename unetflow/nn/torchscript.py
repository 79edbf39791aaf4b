"""A network as TorchScript: weights and layers in one file that runs without this package."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from unetflow.architecture import Shape
from unetflow.nn.unet import UNet


class Probabilities(nn.Module):
    """A network that ends with the soft-max or the sigmoid of its head.

    Parameters
    ----------
    model : UNet
    """

    def __init__(self, model: UNet) -> None:
        super().__init__()
        self.model, self.is_softmax = model, model.spec.head == "softmax"

    def forward(self, image_BCS: Tensor) -> Tensor:
        """Return probabilities (B, K, *S_out) of normalised images (B, C, *S)."""
        logits: Tensor = self.model(image_BCS)
        return logits.softmax(1) if self.is_softmax else logits.sigmoid()


def save_torchscript(model: UNet, path: str | Path, shape: Shape) -> None:
    """Write a network that gives probabilities, for images of any size that it takes.

    Parameters
    ----------
    model : UNet
        On the CPU; switched to inference.
    path : str or Path
    shape : tuple of int
        A spatial shape that the network takes.

    Notes
    -----
    A trace keeps as constants what it cannot follow, so it is checked with images of another size.
    """
    spec, network = model.spec, Probabilities(model).eval()
    larger = tuple(n + s for n, s in zip(shape, spec.total_stride, strict=True))
    image, other = (torch.rand(2 if s == larger else 1, spec.in_channels, *s) for s in (shape, larger))
    with torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        # The checks of shapes are no part of the trace, and bioimage.io has no newer format of torch with code in it.
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.filterwarnings("ignore", r".*torch\.jit", DeprecationWarning)
        traced = torch.jit.trace(network, image, check_trace=False)
        assert torch.allclose(traced(other), network(other), atol=1e-6), "the trace holds for one shape only"
        torch.jit.save(traced, str(path))
