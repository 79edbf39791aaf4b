"""The training loop: patches in, the best weights out, and on again after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetflow.architecture import UNetSpec
from unetflow.nn.dataset import Batches, PatchSource, Prepare, as_float, in_order
from unetflow.nn.device import pick_device
from unetflow.nn.history import History
from unetflow.nn.recipe import Recipe
from unetflow.nn.scores import Tally
from unetflow.nn.session import Session

Event = dict[str, Any]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training came to.

    Parameters
    ----------
    step : int
        Steps done.
    is_stopped : bool
        Stopped before the last step; the same call goes on.
    state : dict of str to Tensor
        The best weights by validation loss, on the CPU; the last where there is no
        validation. The averaged ones with `Recipe.ema`.
    best_step : int or None
    best_score : float or None
        Validation loss of those weights.
    scores : dict of str to float
        Scores of the last validation of this call; empty for none.
    """

    step: int
    is_stopped: bool
    state: dict[str, Tensor]
    best_step: int | None
    best_score: float | None
    scores: dict[str, float]


def train(
    source: PatchSource,
    validation: PatchSource | None,
    *,
    spec: UNetSpec,
    recipe: Recipe,
    folder: str | Path,
    prepare: Prepare = as_float,
    prepare_validation: Prepare | None = None,
    initial_state: Mapping[str, Tensor] | None = None,
    device: str = "auto",
    metrics: str | Path | None = None,
    on_event: Callable[[Event], None] = lambda event: None,
    should_stop: Callable[[], bool] = lambda: False,
    threads: int | None = None,
) -> TrainResult:
    """Train a U-Net, going on from the newest checkpoint in ``folder``.

    On the CPU, with the same number of threads, a training that was stopped and went on
    gives the same bits as one that was not.

    Parameters
    ----------
    source, validation : PatchSource
        Patches to learn from, and to judge by (may be None or empty).
    spec : UNetSpec
    recipe : Recipe
        The numbers of the training.
    folder : str or Path
        Where checkpoints are kept.
    prepare, prepare_validation : callable
        ``prepare(image (B, C, *S), numbers (B,)) -> float32``: normalises patches. The
        second defaults to the first.
    initial_state : mapping of str to Tensor, optional
        Weights of a model to fine-tune; a checkpoint wins over it.
    device : str
    metrics : str or Path, optional
        A CSV file that gets a row at each validation.
    on_event : callable
        Is told, as dicts with a key ``event``: resumed, step, skipped, validation, checkpoint.
    should_stop : callable
        Asked after each step; True makes a checkpoint and returns.
    threads : int, optional
        Threads of the CPU that torch uses, in this whole process.

    Returns
    -------
    TrainResult

    Raises
    ------
    InputError
        If all checkpoints are damaged, or of another network or optimiser.
    StageError
        If the loss ceases to be a number.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    chosen = pick_device(device)
    # The caller's random state stays as it is.
    with torch.random.fork_rng([chosen] if chosen.type == "cuda" else []):
        session = Session(spec, recipe, chosen, initial_state)
        if session.restore(folder):
            on_event({"event": "resumed", "step": session.step})
        judge = _Judge(session, validation, prepare_validation or prepare)
        history = None if metrics is None else History(metrics, session.step)
        reporter = _Reporter(session, history, len(source), on_event)
        keeper = _Keeper(session, folder, on_event)
        is_stopped = _run(session, source, prepare, judge, reporter, keeper, should_stop)
        keeper.save()
        return TrainResult(
            step=session.step,
            is_stopped=is_stopped,
            state=session.best_state(),
            best_step=session.best_step,
            best_score=session.best_score,
            scores=judge.scores,
        )


def _run(
    session: Session,
    source: PatchSource,
    prepare: Prepare,
    judge: _Judge,
    reporter: _Reporter,
    keeper: _Keeper,
    should_stop: Callable[[], bool],
) -> bool:
    """Do the steps that are left; say whether it was told to stop."""
    recipe = session.recipe
    if session.step >= recipe.steps:
        return False
    every = recipe.validate_every or max(1, len(source) // recipe.batch_size)
    with Batches(
        source,
        batch_size=recipe.batch_size,
        seed=recipe.seed,
        first_step=session.step,
        prepare=prepare,
        augmentation=recipe.augmentation,
        memory_bytes=recipe.memory_bytes,
    ) as batches:
        while session.step < recipe.steps:
            reporter.step(*session.learn(next(batches)))
            if session.step % every == 0 or session.step >= recipe.steps:
                reporter.validation(judge.scores_now(), judge.is_best)
            if session.step < recipe.steps and should_stop():
                return True
            keeper.save_when_due()
    return False


class _Judge:
    """Sweeps over the validation patches."""

    def __init__(self, session: Session, validation: PatchSource | None, prepare: Prepare) -> None:
        self._session, self._source, self._prepare = session, validation, prepare
        self.scores: dict[str, float] = {}
        self.is_best = False

    def scores_now(self) -> dict[str, float]:
        """Score the network as it is; nothing where there are no validation patches."""
        if self._source is None or len(self._source) == 0:
            return {}
        tally = Tally(self._session.judged.spec.head)
        for batch in in_order(self._source, self._session.recipe.batch_size, self._prepare):
            logits = self._session.logits(batch.image)
            tally.add(logits, self._session.put(batch.target), self._session.put(batch.weight))
        self.scores = tally.scores()
        self.is_best = self._session.judge(self.scores["loss"])
        return self.scores


class _Reporter:
    """Tells the caller and the metrics file how it goes."""

    def __init__(
        self, session: Session, history: History | None, n_patches: int, on_event: Callable[[Event], None]
    ) -> None:
        self._session, self._history, self._tell = session, history, on_event
        self._n_patches = n_patches
        self._losses: list[float] = []
        self._rates = (0.0, 0.0)
        self._since = time.monotonic()

    def step(self, loss: float, gradient_norm: float) -> None:
        """Report a step that is done."""
        session = self._session
        rate = session.optimizer.param_groups[0]["lr"]
        self._losses.append(loss)
        self._rates = (rate, gradient_norm)
        self._tell({
            "event": "skipped" if session.n_skipped else "step",
            "step": session.step,
            "steps": session.recipe.steps,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": gradient_norm,
        })  # fmt: skip

    def validation(self, scores: Mapping[str, float], is_best: bool) -> None:
        """Report scores (none without validation patches), and write a row."""
        session = self._session
        if scores:
            self._tell({"event": "validation", "step": session.step, "is_best": is_best, **scores})
        if self._history is not None:
            self._history.append({
                "step": session.step,
                "epoch": session.step * session.recipe.batch_size / self._n_patches,
                "learning_rate": self._rates[0],
                "loss": sum(self._losses) / len(self._losses),
                "gradient_norm": self._rates[1],
                "validation_loss": scores.get("loss"),
                **{name: scores.get(name) for name in ("pixel_error", "dice", "iou")},
                "seconds": round(time.monotonic() - self._since, 3),
            })  # fmt: skip
        self._losses.clear()
        self._since = time.monotonic()


class _Keeper:
    """Writes checkpoints: every few minutes and at the end, never one step twice."""

    def __init__(self, session: Session, folder: str | Path, on_event: Callable[[Event], None]) -> None:
        self._session, self._folder, self._tell = session, folder, on_event
        self._saved_step = session.step
        self._saved_at = time.monotonic()

    def save_when_due(self) -> None:
        """Write a checkpoint if the last one is old enough."""
        if time.monotonic() - self._saved_at >= 60 * self._session.recipe.checkpoint_minutes:
            self.save()

    def save(self) -> None:
        """Write a checkpoint, unless nothing happened since the last."""
        if self._session.step == self._saved_step:
            return
        self._session.save(self._folder)
        self._saved_step, self._saved_at = self._session.step, time.monotonic()
        self._tell({"event": "checkpoint", "step": self._session.step})
