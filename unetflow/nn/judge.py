"""Validation of a network in training, shared by its ranks."""

from __future__ import annotations

from collections.abc import Callable

from unetflow.nn.dataset import PatchSource, Prepare, in_order
from unetflow.nn.scores import Tally
from unetflow.nn.session import Session


class Judge:
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
