"""Validation scores, from counts that add over batches."""

from __future__ import annotations

import torch
from torch import Tensor

from unetflow.nn.loss import Head, loss_terms, valid_voxels


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

    def add(self, logits_BKS: Tensor, target: Tensor, weight: Tensor) -> None:
        """Count a batch; shapes as in `unetflow.nn.loss.weighted_loss`."""
        total, n_voxels = loss_terms(logits_BKS, target, weight, head=self._head)
        self._loss += float(total)
        self._n_voxels += float(n_voxels)
        valid = weight > 0
        if target.ndim == logits_BKS.ndim:
            self._add_masks(logits_BKS > 0, target > 0, valid)
            return
        truth = target.long()[valid]
        guess = logits_BKS.argmax(1) if self._head == "softmax" else (logits_BKS[:, 0] > 0).long()
        guess = guess[valid_voxels(weight, logits_BKS)]
        n_classes = max(2, logits_BKS.shape[1])
        classes = torch.arange(n_classes, device=truth.device)[:, None]
        self._count(guess == classes, truth == classes, first=1)
        self._wrong += int((guess != truth).sum())
        self._valid += truth.numel()

    def _add_masks(self, guess: Tensor, truth: Tensor, valid: Tensor) -> None:
        guess, truth = (mask.movedim(1, 0).flatten(1) for mask in (guess & valid, truth & valid))
        self._count(guess, truth, first=0)
        self._wrong += int((guess != truth).sum())
        self._valid += int(valid.sum())

    def _count(self, guess_KN: Tensor, truth_KN: Tensor, *, first: int) -> None:
        """Add hits, voxels guessed and voxels true of each foreground class."""
        rows = torch.stack([guess_KN & truth_KN, guess_KN, truth_KN])[:, first:].sum(-1).cpu()
        self._counts = rows if self._counts is None else self._counts + rows

    def scores(self) -> dict[str, float]:
        """Return loss, pixel_error, and dice and iou averaged over the foreground classes.

        A class that neither occurs nor is found scores 1.
        """
        assert self._counts is not None
        hits, guessed, true = self._counts.double()
        both = guessed + true
        dice = torch.where(both > 0, 2 * hits / both.clamp(min=1), 1)
        iou = torch.where(both > 0, hits / (both - hits).clamp(min=1), 1)
        return {
            "loss": self._loss / max(1.0, self._n_voxels),
            "pixel_error": self._wrong / max(1, self._valid),
            "dice": float(dice.mean()),
            "iou": float(iou.mean()),
        }
