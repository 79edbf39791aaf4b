"""The training loop: patches in, the best weights out, and on again after a stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetflow.architecture import UNetSpec
from unetflow.errors import RankLost
from unetflow.nn.checkpoint import sweep
from unetflow.nn.dataset import Batches, PatchSource, Prepare, as_float, in_order
from unetflow.nn.device import pick_device
from unetflow.nn.group import Group
from unetflow.nn.history import History
from unetflow.nn.recipe import Recipe
from unetflow.nn.scores import Tally
from unetflow.nn.session import Session

Event = dict[str, Any]
Look = Callable[[int, Callable[[Any], Tensor]], None]


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
        The best weights by `Recipe.monitor`, on the CPU; the last where there is no
        validation. The averaged ones with `Recipe.ema`.
    best_step : int or None
    best_score : float or None
        The monitored score of those weights.
    scores : dict of str to float
        Scores of the last validation of this call; empty for none.
    wait : float
        Share of the time of this call's steps in which they waited for patches.
    """

    step: int
    is_stopped: bool
    state: dict[str, Tensor]
    best_step: int | None
    best_score: float | None
    scores: dict[str, float]
    wait: float = 0.0


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
    look: Look | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    threads: int | None = None,
    group: Group | None = None,
    beat: Callable[[], None] = lambda: None,
) -> TrainResult:
    """Train a U-Net, going on from the newest checkpoint in ``folder``.

    On the CPU, with the same numbers of threads and ranks, a training that was stopped and went
    on gives the same bits as one that was not. Patches, augmentation and dropout belong to the
    sample, so that another number of ranks changes only the rounding of sums; with batch norm each
    rank normalises its own rows.

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
    look : callable, optional
        ``look(step, predict)`` is called after each validation, by rank 0; ``predict(image (B, C, *S))``
        gives the logits of the network that was judged.
    should_stop : callable
        Asked after each step; True makes a checkpoint and returns.
    threads : int, optional
        Threads of the CPU that torch uses, in this whole process.
    group : Group, optional
        Ranks that train together, each in such a call with the same arguments. Rank 0 alone tells
        events, writes metrics and checkpoints.
    beat : callable
        Called again and again while the training gets on.

    Returns
    -------
    TrainResult

    Raises
    ------
    InputError
        If all checkpoints are damaged, or of another network or optimiser.
    StageError
        If the loss ceases to be a number.
    RankLost
        If another rank is gone; a checkpoint of the last step that was done is written.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    group = group or Group(device=pick_device(device))
    chosen = group.device
    tell = on_event if group.rank == 0 else _silence
    # The caller's random state stays as it is.
    with torch.random.fork_rng([chosen] if chosen.type == "cuda" else []):
        session = Session(spec, recipe, chosen, initial_state, group)
        if group.rank == 0:
            sweep(folder)
        if session.restore(folder):
            tell({"event": "resumed", "step": session.step})
        judge = _Judge(session, validation, prepare_validation or prepare, beat)
        history = None if metrics is None or group.rank else History(metrics, session.step)
        reporter = _Reporter(session, history, len(source), tell)
        keeper = _Keeper(session, folder, tell)
        looker = look if group.rank == 0 and judge.has_patches else None
        is_stopped = _run(session, source, prepare, judge, reporter, keeper, looker, should_stop, beat)
        keeper.save()
        return TrainResult(
            step=session.step,
            is_stopped=is_stopped,
            state=session.best_state(),
            best_step=session.best_step,
            best_score=session.best_score,
            scores=judge.scores,
            wait=reporter.wait,
        )


def _silence(event: Event) -> None:
    """Tell nothing: rank 0 does."""


def _run(
    session: Session,
    source: PatchSource,
    prepare: Prepare,
    judge: _Judge,
    reporter: _Reporter,
    keeper: _Keeper,
    look: Look | None,
    should_stop: Callable[[], bool],
    beat: Callable[[], None],
) -> bool:
    """Do the steps that are left; say whether it was told to stop."""
    recipe, group = session.recipe, session.group
    if session.step >= recipe.steps or session.has_lost_patience():
        return False
    every = recipe.validate_every or max(1, len(source) // recipe.patches_a_step)
    with _batches(session, source, prepare) as batches:
        while session.step < recipe.steps:
            reporter.begin_step()
            batch = next(batches)
            reporter.begin_work()
            with keeper.rescue():
                loss, norm = session.learn(batch)
            reporter.step(loss, norm)
            beat()
            if session.step % every == 0 or session.step >= recipe.steps:
                reporter.validation(judge.scores_now(), judge.is_best)
                if look is not None:
                    look(session.step, session.logits)
            if session.has_lost_patience():
                return False
            # All ranks stop after the same step.
            if session.step < recipe.steps and group.total(should_stop()):
                return True
            keeper.save_when_due()
    return False


def _batches(session: Session, source: PatchSource, prepare: Prepare) -> Batches:
    """Return this rank's rows of each part of the steps to come."""
    recipe, own = session.recipe, session.group.rows(session.recipe.batch_size)
    return Batches(
        source,
        batch_size=recipe.patches_a_step,
        rows=[part * recipe.batch_size + row for part in range(recipe.accumulate) for row in own],
        seed=recipe.seed,
        first_step=session.step,
        prepare=prepare,
        augmentation=recipe.augmentation,
        memory_bytes=recipe.memory_bytes,
        place=session.placement.place,
    )


class _Judge:
    """Sweeps over the validation patches; ranks share them where there are enough."""

    def __init__(
        self, session: Session, validation: PatchSource | None, prepare: Prepare, beat: Callable[[], None]
    ) -> None:
        self._session, self._source, self._prepare, self._beat = session, validation, prepare, beat
        self.scores: dict[str, float] = {}
        self.is_best = False

    @property
    def has_patches(self) -> bool:
        """Say whether there is anything to judge by."""
        return self._source is not None and len(self._source) > 0

    def scores_now(self) -> dict[str, float]:
        """Score the network as it is; nothing where there are no validation patches."""
        if self._source is None or len(self._source) == 0:
            return {}
        session, group = self._session, self._session.group
        size = session.recipe.batch_size
        is_shared = -(-len(self._source) // size) >= group.world
        own = (group.rank, group.world) if is_shared else (0, 1)
        tally = Tally(session.judged.spec.head)
        for batch in in_order(self._source, size, self._prepare, *own):
            tally.add(session.logits(batch.image), session.put(batch.target), session.put(batch.weight))
            self._beat()
        if is_shared:
            tally.add_up(group.sum, session.device)
        self.scores = tally.scores()
        self.is_best = session.judge(self.scores)
        return self.scores


class _Reporter:
    """Tells the caller and the metrics file how it goes."""

    def __init__(
        self, session: Session, history: History | None, n_patches: int, on_event: Callable[[Event], None]
    ) -> None:
        self._session, self._history, self._tell = session, history, on_event
        self._n_patches = n_patches
        self._rates = (0.0, 0.0)
        self._since = self._began = self._worked = time.monotonic()
        self._seconds = self._waited = 0.0

    @property
    def wait(self) -> float:
        """Share of the time of all steps in which they waited for patches."""
        return self._waited / self._seconds if self._seconds else 0.0

    def begin_step(self) -> None:
        """Note that a step asks for its patches."""
        self._began = time.monotonic()

    def begin_work(self) -> None:
        """Note that the patches are there."""
        self._worked = time.monotonic()

    def step(self, loss: float, gradient_norm: float) -> None:
        """Report a step that is done."""
        session = self._session
        waited, seconds = self._worked - self._began, time.monotonic() - self._began
        self._waited, self._seconds = self._waited + waited, self._seconds + seconds
        rate = session.optimizer.param_groups[0]["lr"]
        session.losses.append(loss)
        self._rates = (rate, gradient_norm)
        self._tell({
            "event": "skipped" if session.n_skipped else "step",
            "step": session.step,
            "steps": session.recipe.steps,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": gradient_norm,
            "wait": waited / seconds if seconds else 0.0,
        })  # fmt: skip

    def validation(self, scores: Mapping[str, float], is_best: bool) -> None:
        """Report scores (none without validation patches), and write a row."""
        session = self._session
        if scores:
            self._tell({"event": "validation", "step": session.step, "is_best": is_best, **scores})
        if self._history is not None:
            self._history.append({
                "step": session.step,
                "epoch": session.step * session.recipe.patches_a_step / self._n_patches,
                "learning_rate": self._rates[0],
                "loss": sum(session.losses) / len(session.losses),
                "gradient_norm": self._rates[1],
                "validation_loss": scores.get("loss"),
                **{name: scores.get(name) for name in ("pixel_error", "dice", "iou", "adapted_rand_error")},
                "seconds": round(time.monotonic() - self._since, 3),
            })  # fmt: skip
        session.losses.clear()
        self._since = time.monotonic()


class _Keeper:
    """Writes checkpoints: every few minutes and at the end, never one step twice; rank 0 does."""

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
        self._saved_at = time.monotonic()
        if self._session.group.rank == 0:
            self._write()

    @contextmanager
    def rescue(self) -> Iterator[None]:
        """When another rank is lost, write what was done before: any rank has it, and who lives does."""
        try:
            yield
        except RankLost:
            # Batch norm has seen the step that was cut short: there the last checkpoint has to do.
            if self._session.step != self._saved_step and self._session.model.spec.norm != "batch":
                self._write()
            raise

    def _write(self) -> None:
        self._session.save(self._folder)
        self._saved_step, self._saved_at = self._session.step, time.monotonic()
        self._tell({"event": "checkpoint", "step": self._session.step})
