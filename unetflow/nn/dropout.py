"""Dropout whose masks belong to the sample: the same for any division of a batch among ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

_KEY = 3  # keeps this random stream apart from those of order and augmentation


class SampleDropout(nn.Module):
    """Drop single values, each sample by a random stream of its own.

    Without `use_streams` it is torch's own dropout. With them, the mask of row ``b`` depends on
    the seed and the number given for that row alone: not on the other rows, nor on how many
    ranks share the batch. One stream serves all layers of a forward pass, in their order.

    Parameters
    ----------
    chance : float
        Of a value to be dropped; what stays is divided by ``1 - chance``.
    """

    def __init__(self, chance: float) -> None:
        super().__init__()
        self.chance = chance
        self._streams: list[torch.Generator] = []

    def use_streams(self, seed: int, numbers: Sequence[int], device: torch.device) -> None:
        """Give each row of the next batch its stream.

        Parameters
        ----------
        seed : int
        numbers : sequence of int
            One a row: its place in the endless sequence of samples.
        device : torch.device
        """
        if self.chance:
            self._streams = [torch.Generator(device).manual_seed(_mix(seed, number)) for number in numbers]

    def forward(self, features_BCS: Tensor) -> Tensor:
        """Return the features with some dropped, in training; else as they are."""
        if not self.training or not self.chance:
            return features_BCS
        if len(self._streams) != len(features_BCS):
            return functional.dropout(features_BCS, self.chance)
        mask: Tensor = self._mask(features_BCS)
        return features_BCS * mask

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _mask(self, features_BCS: Tensor) -> Tensor:
        """Return 0 where dropped, else the factor that keeps the mean."""
        mask = torch.empty_like(features_BCS, requires_grad=False)
        for row, stream in zip(mask, self._streams, strict=True):
            row.bernoulli_(1 - self.chance, generator=stream)
        return mask.div_(1 - self.chance)

    def extra_repr(self) -> str:
        """Return what stands between the brackets of its name."""
        return f"chance={self.chance}"


def _mix(seed: int, number: int) -> int:
    """Return a seed for a stream, unlike that of its neighbours."""
    return int(np.random.SeedSequence((seed, _KEY, number)).generate_state(1, np.uint64)[0])
