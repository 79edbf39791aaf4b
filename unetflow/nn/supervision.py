"""Deep supervision: while it learns, the network is asked at its coarser levels too.

::

    level 0   join[0] -> head ------------> logits of each voxel                             share 4/7
    level 1   join[1] -> coarse_heads[0] -> repeated over 2 x 2 voxels, cut to the output    share 2/7
    level 2   join[2] -> coarse_heads[1] -> repeated over 4 x 4 voxels, cut to the output    share 1/7
    bottom    is not asked

A coarse voxel stands for the window of voxels that were pooled into it. Its logits are repeated over
that window, and every voxel is compared with its own target and its own weight. So no target is made
coarse: a window of two classes pulls its voxel to their weighted mean, an ignored voxel pulls it
nowhere, and uneven poolings need no rule of their own. Unpadded, a coarse level reaches as far beyond
the output at both ends of an axis as the finer convolutions cut off; what is beyond is cut away.

References
----------
.. [1] Lee, Xie, Gallagher, Zhang, Tu: Deeply-supervised nets. AISTATS 2015.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from unetflow.architecture import UNetSpec
from unetflow.nn.unet import UNet, crop, initialise, make_head, memory_format

_HEADS = "coarse_heads"

Outputs = Tensor | tuple[Tensor, ...]


class SupervisedUNet(UNet):
    """A U-Net with a 1x1 head at each level between the finest and the bottom.

    The heads serve training only: in evaluation the network is the plain one. With the same random
    state it begins with the weights that the plain one begins with.

    Parameters
    ----------
    spec : UNetSpec
    """

    def __init__(self, spec: UNetSpec) -> None:
        super().__init__(spec)
        self.coarse_heads = nn.ModuleList(make_head(spec, spec.channels(level)) for level in range(1, spec.depth))
        self.coarse_heads.apply(initialise)
        self.coarse_heads.to(memory_format=memory_format(spec.dims))  # type: ignore[call-overload]

    def forward(self, image_BCS: Tensor) -> Outputs:  # type: ignore[override]
        """Return the logits (B, K, *S_out); while it learns, a tuple of them, the finest level first."""
        if not self.training:
            return super().forward(image_BCS)
        coarse: list[Tensor] = []

        def ask(level: int, features_BCS: Tensor) -> None:
            if level > 0:
                coarse.append(self.coarse_heads[level - 1](features_BCS))

        finest = super().forward(image_BCS, ask)
        spread = (self._spread(logits, level, finest) for level, logits in enumerate(reversed(coarse), start=1))
        return (finest, *spread)

    def _spread(self, logits_BKS: Tensor, level: int, like: Tensor) -> Tensor:
        """Repeat each voxel over the window that it stands for, and cut the output out of it."""
        for axis, n in enumerate(self.spec.stride(level), start=2):
            logits_BKS = logits_BKS.repeat_interleave(n, axis) if n > 1 else logits_BKS
        return crop(logits_BKS, like.shape[2:])


def training_network(spec: UNetSpec, *, deep_supervision: bool) -> UNet:
    """Return the network to train."""
    return SupervisedUNet(spec) if deep_supervision else UNet(spec)


def shares(outputs: Outputs) -> list[tuple[float, Tensor]]:
    """Return the logits of each level with their share of the loss; it halves with each level, 1 in all.

    Examples
    --------
    >>> import torch
    >>> [share for share, _ in shares((torch.zeros(1), torch.zeros(1)))]
    [0.6666666666666666, 0.3333333333333333]
    """
    levels = (outputs,) if isinstance(outputs, Tensor) else outputs
    total = 2 - 0.5 ** (len(levels) - 1)
    return [(0.5**number / total, logits) for number, logits in enumerate(levels)]


def inference_state(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the weights of the plain network, without the heads that served training."""
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{_HEADS}.")}
