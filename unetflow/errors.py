"""The few errors that the command line turns into exit codes."""

from __future__ import annotations


class InputError(ValueError):
    """Refuse what a user gave: the rule, the value, the cure, in that order (exit 2)."""


class StageError(RuntimeError):
    """Report that a stage failed for good, for a reason outside its input (exit 1)."""


class BlockError(StageError):
    """Name the stage, the pass and the block in which work failed (exit 1)."""

    def __init__(self, stage: str, pass_name: str, number: int, cause: str) -> None:
        super().__init__(f"{stage}, pass {pass_name}, block {number}: {cause}")
        self.place = (stage, pass_name, number, cause)

    def __reduce__(self) -> tuple[type[BlockError], tuple[str, str, int, str]]:
        """Let the error travel between processes with all that it says."""
        return type(self), self.place


class Interrupted(RuntimeError):
    """Report a stop after which the same command goes on (exit 75)."""


class RankLost(RuntimeError):
    """Report that another rank of a training is gone; the training is begun again from its checkpoint."""
