"""The U-Net, built in one place from its `UNetSpec`.

Tensors wear their shape: B batch, C channels, K output channels, S the spatial axes
``([Z, ]Y, X)``; ``S_out`` is smaller than S where the convolutions are unpadded.

References
----------
.. [1] Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image
   Segmentation. MICCAI 2015: figure 1 (layers), section 3 (initial weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from unetflow.architecture import Shape, UNetSpec
from unetflow.nn.dropout import SampleDropout

# Chosen by the number of axes; the 2-D and 3-D classes share no typed parent.
_CONV: dict[int, Any] = {2: nn.Conv2d, 3: nn.Conv3d}
_TRANSPOSED: dict[int, Any] = {2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_POOL: dict[int, Any] = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_BATCH_NORM: dict[int, Any] = {2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


class UNet(nn.Module):
    """A U-Net with the layers that ``spec`` draws.

    ::

        level 0  contract[0] ------------- skip -------------> join[0] -> extra -> head
                     | pool                                       ^ up[0]
        level 1      contract[1] --------- skip -----> join[1] ---+
                         | pool                           ^ up[1]
        bottom           contract[depth] -----------------+

    Parameters
    ----------
    spec : UNetSpec

    Examples
    --------
    >>> net = UNet(UNetSpec.build(depth=2, base_channels=4))
    >>> tuple(net(torch.zeros(1, 1, 44, 44)).shape)
    (1, 2, 4, 4)
    """

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__()
        self.spec = spec
        levels = range(spec.depth)
        inputs = [spec.in_channels, *(spec.channels(level) for level in levels)]
        width = 2 if spec.skip == "concat" else 1
        self.contract = nn.ModuleList(_convolutions(spec, level, inputs[level]) for level in range(spec.depth + 1))
        self.pool = nn.ModuleList(_POOL[spec.dims](window) for window in spec.pool)
        # The released network drops out before the skip leaves, so both ways see it.
        self.dropout = SampleDropout(spec.dropout)
        self.up = nn.ModuleList(_up(spec, level) for level in levels)
        self.join = nn.ModuleList(_convolutions(spec, level, width * spec.channels(level)) for level in levels)
        self.extra = _extra(spec)
        last = spec.extra_conv or spec.channels(0)
        self.head = make_head(spec, last)
        self.apply(initialise)
        self.to(memory_format=memory_format(spec.dims))  # type: ignore[call-overload]

    def forward(self, image_BCS: Tensor, each_level: Callable[[int, Tensor], None] | None = None) -> Tensor:
        """Return the logits.

        Parameters
        ----------
        image_BCS : Tensor
            Normalised image (B, C, *S).
        each_level : callable, optional
            ``each_level(level, features (B, C, *S_level))`` is told of each level on the way up.

        Returns
        -------
        Tensor
            Logits (B, K, *S_out), with ``S_out = spec.output_shape(S)``.

        Raises
        ------
        InputError
            If the network does not take images of shape S.
        """
        self.spec.output_shape(image_BCS.shape[2:])
        # One name holds the newest features, and layers are called one by one: without gradients, what a
        # layer has read is freed before the next one runs.
        features = image_BCS
        skips = []
        for level, convolutions in enumerate(self.contract):
            for layer in convolutions:  # type: ignore[attr-defined]
                features = layer(features)
            if level >= self.spec.depth - 1:
                features = self.dropout(features)
            if level < self.spec.depth:
                skips.append(features)
                features = self.pool[level](features)
        for level in reversed(range(self.spec.depth)):
            for layer in self.up[level]:  # type: ignore[attr-defined]
                features = layer(features)
            features = self._fuse(features, skips.pop())
            for layer in self.join[level]:  # type: ignore[attr-defined]
                features = layer(features)
            if each_level is not None:
                each_level(level, features)
        features = self.extra(features)
        logits: Tensor = self.head(features)
        return logits

    def _fuse(self, features: Tensor, skip: Tensor) -> Tensor:
        skip = crop(skip, features.shape[2:])
        if self.spec.skip == "concat":
            return torch.cat([features, skip], 1)
        # The gradient of the ReLU before it needs the features unchanged.
        return features + skip if features.requires_grad else features.add_(skip)


class ChannelNorm(nn.Module):
    """Normalise over the channels of each voxel, so that no number depends on the tile.

    Parameters
    ----------
    n_channels : int
    """

    def __init__(self, n_channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n_channels))
        self.bias = nn.Parameter(torch.zeros(n_channels))

    def forward(self, features_BCS: Tensor) -> Tensor:
        """Return the features with mean 0 and deviation 1 per voxel, scaled and shifted."""
        last = features_BCS.movedim(1, -1)  # contiguous: memory is channels-last
        return functional.layer_norm(last, last.shape[-1:], self.weight, self.bias).movedim(-1, 1)


class ResizeConvolution(nn.Module):
    """Repeat each voxel over the pooling window, then convolve with a kernel of that window.

    An even kernel has no centre: the far end is padded by ``window - 1`` zeros, as Keras
    does. An axis that was not pooled has a window and a kernel of length 1.
    """

    def __init__(self, dims: int, c_in: int, c_out: int, window: Shape) -> None:
        super().__init__()
        self.window = window
        self.convolution = _CONV[dims](c_in, c_out, window)

    def forward(self, features_BCS: Tensor) -> Tensor:
        """Return features (B, C / 2, *S * window)."""
        factors = [float(n) for n in self.window]
        ends = [length for n in reversed(self.window) for length in (0, n - 1)]
        wide = functional.interpolate(features_BCS, scale_factor=factors, mode="nearest-exact")
        wide = functional.pad(wide, ends)
        result: Tensor = self.convolution(wide)
        return result


def memory_format(dims: int) -> torch.memory_format:
    """Return the channels-last layout of batches with ``dims`` spatial axes."""
    return _CHANNELS_LAST[dims]


def training_format(dims: int, device: torch.device) -> torch.memory_format:
    """Return the layout in which a training step is fastest.

    Channels-last, but for 2-D on a processor: there oneDNN's backward pass takes 1.5 times as
    long in it as in the default layout (torch 2.13, base 24, 256 x 256).
    """
    is_slow = dims == 2 and device.type == "cpu"
    return torch.contiguous_format if is_slow else memory_format(dims)


def _convolutions(spec: UNetSpec, level: int, c_in: int) -> nn.Sequential:
    """Two convolutions of a level, each with its norm and ReLU."""
    c_out = spec.channels(level)
    layers: list[nn.Module] = []
    for c_from in (c_in, c_out):
        layers.append(_convolution(spec, level, c_from, c_out))
        if spec.norm != "none":
            layers.append(ChannelNorm(c_out) if spec.norm == "layer" else _BATCH_NORM[spec.dims](c_out))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _convolution(spec: UNetSpec, level: int, c_in: int, c_out: int) -> nn.Module:
    kernel = spec.kernel[level]
    padding = tuple(k // 2 if spec.padding == "same" else 0 for k in kernel)
    convolution: nn.Module = _CONV[spec.dims](c_in, c_out, kernel, padding=padding)
    return convolution


def _up(spec: UNetSpec, level: int) -> nn.Module:
    """Up-sample to ``level`` and halve the channels; then ReLU, as in the released network."""
    c_in, c_out, window = spec.channels(level + 1), spec.channels(level), spec.pool[level]
    layer: nn.Module
    if spec.upsample == "transpose":
        layer = _TRANSPOSED[spec.dims](c_in, c_out, window, stride=window)
    else:
        layer = ResizeConvolution(spec.dims, c_in, c_out, window)
    return nn.Sequential(layer, nn.ReLU(inplace=True))


def _extra(spec: UNetSpec) -> nn.Module:
    if not spec.extra_conv:
        return nn.Identity()
    convolution = _convolution(spec, 0, spec.channels(0), spec.extra_conv)
    return nn.Sequential(convolution, nn.ReLU(inplace=True))


def make_head(spec: UNetSpec, c_in: int) -> nn.Module:
    """Return the 1x1 convolution from features to logits."""
    head: nn.Module = _CONV[spec.dims](c_in, spec.out_channels, 1)
    return head


def crop(features_BCS: Tensor, shape: Sequence[int]) -> Tensor:
    """Cut the centre of ``shape`` out of the spatial axes."""
    for axis, length in enumerate(shape, start=2):
        features_BCS = features_BCS.narrow(axis, (features_BCS.shape[axis] - length) // 2, length)
    return features_BCS


def initialise(layer: nn.Module) -> None:
    """Draw weights with deviation sqrt(2 / N), N the connections that enter an output unit [1]_.

    The windows of a transposed convolution do not overlap (stride = kernel): one voxel of
    each input channel enters an output unit.
    """
    if isinstance(layer, nn.Conv2d | nn.Conv3d):
        n_incoming = layer.weight[0].numel()
    elif isinstance(layer, nn.ConvTranspose2d | nn.ConvTranspose3d):
        n_incoming = layer.weight.shape[0]
    else:
        return
    if layer.weight.is_meta:
        return  # a file fills them; torch 2.13 would import its compiler to draw nothing, 5 seconds
    nn.init.normal_(layer.weight, 0.0, math.sqrt(2 / n_incoming))
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
