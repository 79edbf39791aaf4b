"""Validation scores, from counts that add over batches.

No score is a mean of scores: hits, errors and pairs of voxels are counted over all validation
patches, and the ratios are taken once, at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unetflow.errors import InputError
from unetflow.nn.loss import Head, loss_terms, valid_voxels

LARGER_IS_BETTER = {
    "loss": False,
    "pixel_error": False,
    "dice": True,
    "iou": True,
    "adapted_rand_error": False,
}
_PER_CLASS = ("pixel_error", "dice", "iou")


def larger_is_better(name: str, n_classes: int, *, is_multilabel: bool = False) -> bool:
    """Say which way a score is better, by its name in `Tally.scores`.

    Parameters
    ----------
    name : str
        A key of `LARGER_IS_BETTER`, or such a key of one class: ``dice/2``.
    n_classes : int
        Classes, the background among them; of multilabel, masks.
    is_multilabel : bool

    Raises
    ------
    InputError
        If there is no score of that name.

    Examples
    --------
    >>> larger_is_better("dice/2", 3), larger_is_better("loss", 2)
    (True, False)
    """
    score, slash, index = name.partition("/")
    known = list(LARGER_IS_BETTER)
    classes = range(n_classes) if is_multilabel else range(1, n_classes)
    if len(classes) > 1:
        known += [f"{each}/{number}" for each in _PER_CLASS for number in classes]
    if name not in known:
        raise InputError(f"train.monitor must be a validation score, {', '.join(known)}; got '{name}'; use loss")
    return LARGER_IS_BETTER[score]


class Tally:
    """Counts of a validation sweep.

    Parameters
    ----------
    head : {"softmax", "sigmoid"}
    """

    def __init__(self, head: Head) -> None:
        self._head = head
        self._loss = self._n_voxels = 0.0
        self._wrong = self._valid = 0
        self._counts: Tensor | None = None
        self._first = 1
        self._pairs = np.zeros(3)

    def add(self, logits_BKS: Tensor, target: Tensor, weight: Tensor) -> None:
        """Count a batch; shapes as in `unetflow.nn.loss.weighted_loss`."""
        total, n_voxels = loss_terms(logits_BKS, target, weight, head=self._head)
        self._loss += float(total)
        self._n_voxels += float(n_voxels)
        valid = weight > 0
        if target.ndim == logits_BKS.ndim:
            self._first = 0
            self._add_masks(logits_BKS > 0, target > 0, valid)
            return
        guess = logits_BKS.argmax(1) if self._head == "softmax" else (logits_BKS[:, 0] > 0).long()
        self._add_pairs(guess > 0, target > 0, valid)
        truth = target.long()[valid]
        guess = guess[valid_voxels(weight, logits_BKS)]
        n_classes = max(2, logits_BKS.shape[1])
        classes = torch.arange(1, n_classes, device=truth.device)[:, None]
        self._count(guess == classes, truth == classes, torch.ones_like(truth, dtype=torch.bool))
        self._wrong += int((guess != truth).sum())
        self._valid += truth.numel()

    def _add_masks(self, guess: Tensor, truth: Tensor, valid: Tensor) -> None:
        self._add_pairs(guess.flatten(0, 1), truth.flatten(0, 1), valid.flatten(0, 1))
        guess, truth, valid = (mask.movedim(1, 0).flatten(1) for mask in (guess & valid, truth & valid, valid))
        self._count(guess, truth, valid)
        self._wrong += int((guess != truth).sum())
        self._valid += int(valid.sum())

    def _count(self, guess_KN: Tensor, truth_KN: Tensor, valid: Tensor) -> None:
        """Add hits, voxels guessed, true and not ignored of each foreground class."""
        rows = torch.stack([guess_KN & truth_KN, guess_KN, truth_KN, valid.expand_as(truth_KN)]).sum(-1).cpu()
        self._counts = rows if self._counts is None else self._counts + rows

    def _add_pairs(self, guess_BS: Tensor, truth_BS: Tensor, valid_BS: Tensor) -> None:
        """Add the pairs of voxels that objects join, a sample at a time: no object spans two samples."""
        arrays = (array.cpu().numpy() for array in (guess_BS, truth_BS, valid_BS))
        for guess, truth, valid in zip(*arrays, strict=True):
            self._pairs += joined_pairs(guess, truth & valid)

    def add_up(self, total: Callable[[Tensor], Tensor], device: torch.device) -> None:
        """Put in place of the counts those of all ranks; each must have counted a batch.

        Parameters
        ----------
        total : callable
            Sums a tensor over the ranks.
        device : torch.device
            Where that tensor must be.
        """
        assert self._counts is not None
        numbers = [self._loss, self._n_voxels, self._wrong, self._valid, *self._pairs.tolist()]
        one = torch.cat([torch.tensor(numbers, dtype=torch.float64), self._counts.flatten().double()])
        sums = total(one.to(device)).cpu()
        self._loss, self._n_voxels = sums[:2].tolist()
        self._wrong, self._valid = (int(number) for number in sums[2:4].tolist())
        self._pairs = sums[4:7].numpy()
        self._counts = sums[7:].view_as(self._counts)

    def scores(self) -> dict[str, float]:
        """Return loss, pixel_error, dice, iou and adapted_rand_error over all that was counted.

        Where there is more than one foreground class, dice and iou are means over the classes, and
        ``dice/1``, ``iou/1``, ``pixel_error/1`` and so on tell each of them. A class that neither
        occurs nor is found scores 1; where there are no objects, none is wrong.
        """
        assert self._counts is not None
        hits, guessed, true, valid = self._counts.double()
        both = guessed + true
        each = {
            "pixel_error": (both - 2 * hits) / valid.clamp(min=1),
            "dice": torch.where(both > 0, 2 * hits / both.clamp(min=1), 1),
            "iou": torch.where(both > 0, hits / (both - hits).clamp(min=1), 1),
        }
        found = {
            "loss": self._loss / max(1.0, self._n_voxels),
            "pixel_error": self._wrong / max(1, self._valid),
            "dice": float(each["dice"].mean()),
            "iou": float(each["iou"].mean()),
            "adapted_rand_error": self._rand_error(),
        }
        if len(hits) > 1:
            found |= {
                f"{name}/{number}": float(value)
                for name in _PER_CLASS
                for number, value in enumerate(each[name], start=self._first)
            }
        return found

    def _rand_error(self) -> float:
        in_both, in_truth, in_guess = self._pairs
        return float(1 - 2 * in_both / (in_truth + in_guess)) if in_truth + in_guess else 0.0


def joined_pairs(guess: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Count the ordered pairs of voxels that lie in one object of both, of the truth, and of the guess.

    Objects are face-connected components. Only voxels of true objects count, as in scikit-image's
    ``adapted_rand_error``; those that the guess leaves out are one object.

    Examples
    --------
    >>> joined_pairs(np.array([1, 1, 1, 0], bool), np.array([1, 0, 1, 1], bool)).tolist()
    [0.0, 2.0, 2.0]
    """
    from scipy import ndimage

    labels: Any = ndimage.label
    inside = truth.nonzero()
    true, found = (labels(mask)[0][inside].astype(np.int64) for mask in (truth, guess))
    together = true * (int(found.max(initial=0)) + 1) + found
    sums = [np.square(np.unique(ids, return_counts=True)[1].astype(float)).sum() for ids in (together, true, found)]
    return np.array(sums, np.float64) - float(true.size)
