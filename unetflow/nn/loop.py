"""The training loop: patches in, the best weights out, and on again after a stop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unetflow.architecture import UNetSpec
from unetflow.nn.checkpoint import sweep
from unetflow.nn.dataset import Batches, PatchSource, Prepare, as_float
from unetflow.nn.device import pick_device
from unetflow.nn.group import Group
from unetflow.nn.history import History
from unetflow.nn.judge import Judge
from unetflow.nn.recipe import Recipe
from unetflow.nn.reporter import Event, Keeper, Reporter
from unetflow.nn.session import Session

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
        judge = Judge(session, validation, prepare_validation or prepare, beat)
        history = None if metrics is None or group.rank else History(metrics, session.step)
        reporter = Reporter(session, history, len(source), tell)
        keeper = Keeper(session, folder, tell)
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
    judge: Judge,
    reporter: Reporter,
    keeper: Keeper,
    look: Look | None,
    should_stop: Callable[[], bool],
    beat: Callable[[], None],
) -> bool:
    """Do the steps that are left; say whether it was told to stop."""
    recipe, group = session.recipe, session.group
    every = recipe.validate_every or max(1, len(source) // recipe.patches_a_step)

    def judge_when_due() -> None:
        if session.losses and (session.step % every == 0 or session.step >= recipe.steps):
            reporter.validation(judge.scores_now(), judge.is_best)
            if look is not None:
                look(session.step, session.logits)

    with keeper.rescue():
        judge_when_due()  # a rank may have been lost meanwhile
    if session.is_over():
        return False
    with _batches(session, source, prepare) as batches:
        while True:
            reporter.begin_step()
            batch = next(batches)
            reporter.begin_work()
            with keeper.rescue():
                loss, norm = session.learn(batch)
                reporter.step(loss, norm)
                beat()
                judge_when_due()
                if session.is_over():
                    return False
                # All ranks stop after the same step.
                if group.total(should_stop()):
                    return True
            keeper.save_when_due()


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
