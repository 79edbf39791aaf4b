"""What a training tells and keeps as it goes: events, rows of metrics, checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from unetflow.errors import RankLost
from unetflow.nn.history import History
from unetflow.nn.session import Session

Event = dict[str, Any]


class Reporter:
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


class Keeper:
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
            if self._session.step != self._saved_step:
                self._write()
            raise

    def _write(self) -> None:
        self._session.save(self._folder)
        self._saved_step, self._saved_at = self._session.step, time.monotonic()
        self._tell({"event": "checkpoint", "step": self._session.step})
