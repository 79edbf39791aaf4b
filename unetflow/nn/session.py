"""All that changes while a network is trained: what a checkpoint holds.

Where several ranks train, each has its rows of the batch and the same weights: gradients are added up,
so that all do the same step. The loss is that of the global batch, the same on all of them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError, RankLost, StageError
from unetflow.nn.checkpoint import Checkpoint, load_latest, load_step, save_checkpoint
from unetflow.nn.device import arithmetic, pick_precision
from unetflow.nn.gradients import GradientSums
from unetflow.nn.group import Group
from unetflow.nn.loss import valid_voxels, weighted_loss
from unetflow.nn.optim import (
    build_optimizer,
    learning_rate_at,
    optimizer_tensors,
    restore_optimizer,
    update_average,
)
from unetflow.nn.placement import Placed, Placement
from unetflow.nn.recipe import Recipe
from unetflow.nn.scores import larger_is_better
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
    group : Group, optional
        The ranks that train together; absent: this one is alone.

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
        group: Group | None = None,
    ) -> None:
        self.recipe, self.device, self.group = recipe, device, group or Group(device=device)
        self._precision = pick_precision(recipe.precision, self.device)
        torch.manual_seed(recipe.seed)
        self.model = training_network(spec, deep_supervision=recipe.deep_supervision)
        if initial_state is not None:
            _load(self.model, initial_state, "the model to fine-tune")
        layout = training_format(spec.dims, self.device)
        self.placement = Placement(self.device, layout, spec.dims)
        self.model.to(self.device, memory_format=layout)  # type: ignore[call-overload]
        self._network: Any = torch.compile(self.model) if recipe.compile else self.model
        self.optimizer = build_optimizer(
            self.model,
            recipe.optimizer,
            learning_rate=recipe.learning_rate,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
        )
        self.average = copy.deepcopy(self.model).eval() if recipe.ema else None
        self._sums = GradientSums(self.model.parameters(), self.group) if self.group.world > 1 else None
        self._larger_is_better = larger_is_better(
            recipe.monitor,
            spec.out_channels if spec.head == "softmax" else max(2, spec.out_channels),
            is_multilabel=spec.head == "sigmoid" and spec.out_channels > 1,
        )
        self.step = 0
        self.n_skipped = 0
        self.losses: list[float] = []  # of the steps since the last row of the metrics
        self.n_worse = 0
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

    def is_over(self) -> bool:
        """Say whether all steps are done, or the score has not become better for as long as the recipe waits."""
        has_lost_patience = self.recipe.patience is not None and self.n_worse >= self.recipe.patience
        return has_lost_patience or self.step >= self.recipe.steps

    def learn(self, batch: Placed) -> tuple[float, float]:
        """Do one step; return the loss of the global batch and the norm of its gradient.

        A step whose loss or gradient is no finite number changes no weight.

        Parameters
        ----------
        batch : Placed
            This rank's rows: those of the first part of the step, then of the second, and so on.

        Raises
        ------
        StageError
            If ten such steps follow one another.
        RankLost
            If another rank is gone; nothing has changed then.
        """
        self.model.train()
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate
        with self._undone():
            loss = self._add_gradients(batch.wait())
        norm = self._clip()
        self.step += 1
        if loss < float("inf") and norm < float("inf"):
            self.n_skipped = 0
            self.optimizer.step()
        else:
            self._skip()
        if self.average is not None:
            update_average(self.average, self.model, self.step, self.recipe.ema)
        return loss, norm

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Give batch norm its running means back when a step is cut short: who lives saves what was before."""
        buffers = list(self.model.buffers()) if self.group.world > 1 else []
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        except RankLost:
            for buffer, values in zip(buffers, before, strict=True):
                buffer.copy_(values)
            raise

    def _add_gradients(self, batch: Placed) -> float:
        """Give each weight the gradient of the whole step; return its loss."""
        if self._sums is None:
            self.optimizer.zero_grad(set_to_none=True)
        else:
            self._sums.begin()
        n_parts = self.recipe.accumulate
        n_rows = len(batch.numbers) // n_parts
        parts = [batch.rows(n * n_rows, (n + 1) * n_rows) for n in range(n_parts)]
        weights = self._shares(parts)
        total = torch.zeros((), device=self.device)
        for number, (part, share) in enumerate(zip(parts, weights, strict=True), start=1):
            loss = self._loss(part) if share is None else share * self._loss(part)
            total += loss.detach()
            if self._sums is not None and number == n_parts:
                self._sums.announce_last()
            loss.backward()
        if self._sums is not None:
            self._sums.finish()
            self._average_buffers()
        return total.item()

    def _shares(self, parts: list[Placed]) -> list[Tensor | None]:
        """Return the share of each part in the voxels of the step that are not ignored."""
        if len(parts) == 1:
            return [None]
        counts = torch.stack([valid_voxels(part.weight, part.image).sum() for part in parts])
        counts = self.group.sum(counts)
        return list(counts / counts.sum().clamp(min=1))

    def _loss(self, batch: Placed) -> Tensor:
        """Return the loss of a part of the step, over all ranks."""
        self.model.dropout.use_streams(self.recipe.seed, batch.numbers, self.device)
        with arithmetic(self._precision, self.device):
            outputs = self._network(batch.image)
        head, dice = self.model.spec.head, self.recipe.loss == "cross_entropy+dice"
        terms = [share * weighted_loss(logits, batch.target, batch.weight, head=head, dice=dice,
                                       gather=self.group.gather)
                 for share, logits in shares(outputs)]  # fmt: skip
        return torch.stack(terms).sum()

    def _average_buffers(self) -> None:
        """Give all ranks the same running means of batch norm: each saw its own rows."""
        means = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        if means:
            total = self.group.sum(torch.cat([mean.flatten() for mean in means])) / self.group.world
            for mean, values in zip(means, total.split([mean.numel() for mean in means]), strict=True):
                mean.copy_(values.view_as(mean))

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
        return self.placement.put(array)

    def logits(self, image: Any) -> Tensor:
        """Return the logits of the judged network for a batch of images, for validation."""
        with torch.inference_mode(), arithmetic(self._precision, self.device):
            result: Tensor = self.judged.eval()(self.put(image))
        return result

    def judge(self, scores: Mapping[str, float]) -> bool:
        """Take validation scores; keep the weights if they are the best by the recipe's score."""
        score = scores[self.recipe.monitor]
        if self.best_score is None:
            is_best = score == score  # no number is not the best
        else:
            is_best = score > self.best_score if self._larger_is_better else score < self.best_score
        self.n_worse = 0 if is_best else self.n_worse + 1
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
        state = {
            "n_skipped": self.n_skipped,
            "losses": self.losses,
            "n_worse": self.n_worse,
            "best_step": self.best_step,
            "best_score": self.best_score,
        }
        save_checkpoint(folder, self.step, groups, state)

    def restore(self, folder: str | Path) -> bool:
        """Go on from the newest whole checkpoint; say whether there was one.

        Raises
        ------
        InputError
            If all checkpoints are damaged, or of another architecture or optimiser.
        """
        found = self._find(folder)
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
        self.losses = list(found.state.get("losses", []))
        self.n_worse = int(found.state.get("n_worse", 0))
        self.best_step, self.best_score = found.state["best_step"], found.state["best_score"]
        self._best = groups.get("best", {})
        return True

    def _find(self, folder: str | Path) -> Checkpoint | None:
        """Return the newest whole checkpoint: that which rank 0 finds."""
        found = load_latest(folder) if self.group.rank == 0 else None
        step = self.group.tell(0 if found is None else found.step)
        return load_step(folder, step) if step and found is None else found


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
