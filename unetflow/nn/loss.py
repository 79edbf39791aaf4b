"""The training loss: cross entropy, weighted per voxel.

Tensors wear their shape: B batch, K output channels, S the spatial axes. The result is::

    sum(weight * cross entropy) / number of voxels that are not ignored

where an ignored voxel is one of weight 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

Head = Literal["softmax", "sigmoid"]
Gather = Callable[[Tensor], Tensor]  # sums over all ranks, with the gradient of this rank's share


def _alone(sums: Tensor) -> Tensor:
    return sums


def weighted_loss(
    logits_BKS: Tensor,
    target: Tensor,
    weight: Tensor,
    *,
    head: Head,
    dice: bool = False,
    gather: Gather = _alone,
) -> Tensor:
    """Return the weighted cross entropy per voxel that is not ignored.

    Parameters
    ----------
    logits_BKS : Tensor
        Logits (B, K, *S); K = 1 for a sigmoid of two classes.
    target : Tensor
        Class indices (B, *S); or 0/1 masks (B, K, *S) for multilabel.
    weight : Tensor
        Weights of the target's shape; 0 = ignored, whatever the target says there.
    head : {"softmax", "sigmoid"}
    dice : bool
        Add the soft Dice loss of the voxels that are not ignored.
    gather : callable
        Adds up, over ranks, what the loss is made of: sums over voxels. The result is then the
        loss of the global batch on each rank, and the gradients of all ranks add up to its own.

    Returns
    -------
    Tensor
        A float32 scalar.

    Examples
    --------
    >>> loss = weighted_loss(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 9]]),
    ...                      torch.tensor([[1.0, 1.0, 0.0]]), head="softmax")
    >>> round(loss.item(), 4)
    0.6931
    """
    total, n_voxels = gather(torch.stack(loss_terms(logits_BKS, target, weight, head=head)))
    loss: Tensor = total / n_voxels.clamp(min=1)
    if dice:
        loss = loss + soft_dice_loss(logits_BKS, target, weight, head=head, gather=gather)
    return loss


def loss_terms(logits_BKS: Tensor, target: Tensor, weight: Tensor, *, head: Head) -> tuple[Tensor, Tensor]:
    """Return the weighted sum and the number of voxels not ignored.

    Both add over batches and ranks. In multilabel targets a voxel's cross entropy is the
    sum over its labels, and a voxel is ignored where the weights of all labels are 0.
    """
    target = _clean(target, weight)
    logits = logits_BKS.float()
    if head == "softmax":
        entropy = functional.cross_entropy(logits, target, reduction="none")
    else:
        logits = logits if target.ndim == logits.ndim else logits.squeeze(1)
        entropy = functional.binary_cross_entropy_with_logits(logits, target.float(), reduction="none")
    return (weight * entropy).sum(), valid_voxels(weight, logits_BKS).sum()


def soft_dice_loss(
    logits_BKS: Tensor, target: Tensor, weight: Tensor, *, head: Head, gather: Gather = _alone
) -> Tensor:
    """Return 1 - mean soft Dice of the foreground classes over the voxels not ignored.

    References
    ----------
    .. [1] Milletari, Navab, Ahmadi: V-Net. 3DV 2016, section 3 (here without squares, and
       with 1 added above and below, so that an absent class costs nothing).
    """
    valid_BKS = _with_channels(weight > 0, logits_BKS)
    target = _clean(target, weight)
    if head == "softmax":
        chance = logits_BKS.float().softmax(1)[:, 1:]
        one_hot = functional.one_hot(target, logits_BKS.shape[1]).movedim(-1, 1)
        truth = one_hot[:, 1:].to(chance.dtype)
    else:
        chance = logits_BKS.float().sigmoid()
        truth = _with_channels(target, logits_BKS).to(chance.dtype)
    chance, truth = chance * valid_BKS, truth * valid_BKS
    axes = [0, *range(2, chance.ndim)]
    overlap, both = gather(torch.stack([(chance * truth).sum(axes), chance.sum(axes) + truth.sum(axes)]))
    dice: Tensor = ((2 * overlap + 1) / (both + 1)).mean()
    return 1 - dice


def valid_voxels(weight: Tensor, logits_BKS: Tensor) -> Tensor:
    """Return the voxels (B, *S) that are not ignored, as bool."""
    valid = weight > 0
    return valid.any(1) if weight.ndim == logits_BKS.ndim else valid


def _clean(target: Tensor, weight: Tensor) -> Tensor:
    """Put class 0 where a voxel is ignored: the target there may be no class at all."""
    return torch.where(weight > 0, target.long(), 0)


def _with_channels(values: Tensor, logits_BKS: Tensor) -> Tensor:
    return values if values.ndim == logits_BKS.ndim else values.unsqueeze(1)
