"""All that changes while a network is trained: what a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError, StageError
from unetflow.nn.checkpoint import load_latest, save_checkpoint
from unetflow.nn.dataset import Batch
from unetflow.nn.device import arithmetic, pick_precision
from unetflow.nn.loss import weighted_loss
from unetflow.nn.optim import (
    build_optimizer,
    learning_rate_at,
    optimizer_tensors,
    restore_optimizer,
    update_average,
)
from unetflow.nn.recipe import Recipe
from unetflow.nn.supervision import inference_state, shares, training_network
from unetflow.nn.unet import UNet, training_format

MAX_SKIPPED = 10  # steps in a row with a loss that is no number, before training fails


class Session:
    """A network in training: weights, optimiser, average, the best so far.

    Parameters
    ----------
    spec : UNetSpec
    recipe : Recipe
    device : torch.device
    initial_state : mapping of str to Tensor, optional
        Weights to begin from (fine-tuning).

    Raises
    ------
    InputError
        If the weights to begin from are those of another architecture.
    """

    def __init__(
        self,
        spec: UNetSpec,
        recipe: Recipe,
        device: torch.device,
        initial_state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.recipe, self.device = recipe, device
        self._precision = pick_precision(recipe.precision, self.device)
        torch.manual_seed(recipe.seed)
        self.model = training_network(spec, deep_supervision=recipe.deep_supervision)
        if initial_state is not None:
            _load(self.model, initial_state, "the model to fine-tune")
        self._layout = training_format(spec.dims, self.device)
        self.model.to(self.device, memory_format=self._layout)  # type: ignore[call-overload]
        self.optimizer = build_optimizer(
            self.model,
            recipe.optimizer,
            learning_rate=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.average = copy.deepcopy(self.model).eval() if recipe.ema else None
        self.step = 0
        self.n_skipped = 0
        self.best_step: int | None = None
        self.best_score: float | None = None
        self._best: dict[str, Tensor] = {}

    @property
    def judged(self) -> UNet:
        """The network that validation judges: the average if there is one."""
        return self.model if self.average is None else self.average

    @property
    def learning_rate(self) -> float:
        """Learning rate of the next step."""
        return learning_rate_at(self.recipe.schedule, self.step, self.recipe.steps, self.recipe.learning_rate)

    def learn(self, batch: Batch) -> tuple[float, float]:
        """Do one step; return its loss and the norm of its gradient.

        A step whose loss or gradient is no finite number changes no weight.

        Raises
        ------
        StageError
            If ten such steps follow one another.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._loss(batch)
        loss.backward()
        norm = self._clip()
        self.step += 1
        if loss.isfinite() and norm < float("inf"):
            self.n_skipped = 0
            self.optimizer.step()
        else:
            self._skip()
        if self.average is not None:
            update_average(self.average, self.model, self.step, self.recipe.ema)
        return loss.item(), norm

    def _loss(self, batch: Batch) -> Tensor:
        with arithmetic(self._precision, self.device):
            outputs = self.model(self.put(batch.image))
        target, weight = self.put(batch.target), self.put(batch.weight)
        head, dice = self.model.spec.head, self.recipe.loss == "cross_entropy+dice"
        terms = [share * weighted_loss(logits, target, weight, head=head, dice=dice)
                 for share, logits in shares(outputs)]  # fmt: skip
        return torch.stack(terms).sum()

    def _clip(self) -> float:
        """Shorten the gradient to the longest that is allowed; return its norm before."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self.recipe.clip, norm)
        return float(norm)

    def _skip(self) -> None:
        self.n_skipped += 1
        if self.n_skipped >= MAX_SKIPPED:
            raise StageError(
                f"the loss must stay a finite number, but was none in {MAX_SKIPPED} steps in a row up to "
                f"step {self.step}; lower learning_rate ({self.recipe.learning_rate}) or set clip = 1.0"
            )

    def put(self, array: Any) -> Tensor:
        """Return a NumPy array as a tensor on the device."""
        tensor = torch.from_numpy(array if array.flags.writeable else array.copy())
        if self.device.type == "cuda":
            tensor = tensor.pin_memory()
        if tensor.ndim == self.model.spec.dims + 2 and tensor.is_floating_point():
            tensor = tensor.contiguous(memory_format=self._layout)
        return tensor.to(self.device, non_blocking=True)

    def logits(self, image: Any) -> Tensor:
        """Return the logits of the judged network for a batch of images, for validation."""
        with torch.inference_mode(), arithmetic(self._precision, self.device):
            result: Tensor = self.judged.eval()(self.put(image))
        return result

    def judge(self, score: float) -> bool:
        """Take a validation score (lower is better); keep the weights if they are the best."""
        is_best = score < (float("inf") if self.best_score is None else self.best_score)
        if is_best:
            self.best_score, self.best_step = score, self.step
            self._best = _copy(self.judged)
        return is_best

    def best_state(self) -> dict[str, Tensor]:
        """Return the best weights, on the CPU; the last where nothing was validated."""
        return inference_state(self._best or _copy(self.judged))

    def save(self, folder: str | Path) -> None:
        """Write a checkpoint."""
        groups: dict[str, Mapping[str, Tensor]] = {
            "model": self.model.state_dict(),
            "optimizer": optimizer_tensors(self.optimizer),
            "average": {} if self.average is None else self.average.state_dict(),
            "best": self._best,
            "random": _random_states(self.device),
        }
        state = {"n_skipped": self.n_skipped, "best_step": self.best_step, "best_score": self.best_score}
        save_checkpoint(folder, self.step, groups, state)

    def restore(self, folder: str | Path) -> bool:
        """Go on from the newest whole checkpoint; say whether there was one.

        Raises
        ------
        InputError
            If all checkpoints are damaged, or of another architecture or optimiser.
        """
        found = load_latest(folder)
        if found is None:
            return False
        groups = found.groups
        _load(self.model, groups["model"], f"the checkpoint in '{folder}'")
        if self.average is not None:
            _load(self.average, groups.get("average") or groups["model"], f"the checkpoint in '{folder}'")
        try:
            restore_optimizer(self.optimizer, groups.get("optimizer", {}))
        except (KeyError, IndexError, ValueError, RuntimeError) as cause:
            raise InputError(
                f"a checkpoint must be of the same optimiser, got another in '{folder}' ({cause}); "
                "start anew with --overwrite"
            ) from cause
        _restore_random(groups["random"], self.device)
        self.step, self.n_skipped = found.step, int(found.state["n_skipped"])
        self.best_step, self.best_score = found.state["best_step"], found.state["best_score"]
        self._best = groups.get("best", {})
        return True


def _load(model: UNet, state: Mapping[str, Tensor], whose: str) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as cause:
        lines = str(cause).splitlines()
        raise InputError(
            f"weights must fit the architecture, got others in {whose} ({lines[-1].strip()}); "
            "use the same [model] settings"
        ) from cause


def _copy(model: UNet) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _random_states(device: torch.device) -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def _restore_random(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
