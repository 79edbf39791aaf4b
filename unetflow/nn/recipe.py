"""The numbers of a training, checked when they are put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from unetflow.errors import InputError
from unetflow.nn.augment import Augmentation
from unetflow.nn.optim import OptimizerName, ScheduleName, learning_rate_at


@dataclass(frozen=True, slots=True)
class Recipe:
    """The numbers of a training.

    Parameters
    ----------
    steps : int
        Optimiser steps in all.
    learning_rate : float
    batch_size : int
        Patches a step. The paper has 1 large one, and a high momentum to make up for it.
    accumulate : int
        Batches whose gradients are added up before a step: it sees ``batch_size * accumulate``
        patches in the memory that ``batch_size`` of them need.
    optimizer : {"sgd", "adam", "adamw"}
    momentum : float
        Of SGD; 0.99 in the paper.
    weight_decay : float
    schedule : {"constant", "cosine", "poly"}
        Poly is ``(1 - step / steps) ** 0.9``.
    loss : {"cross_entropy", "cross_entropy+dice"}
    deep_supervision : bool
        Ask the network at its coarser levels too (`unetflow.nn.supervision`).
    precision : {"auto", "float32", "bf16"}
    clip : float, optional
        Largest norm of the gradient.
    ema : float
        Decay of the running average of the weights; 0 for none.
    compile : bool
        Have torch compile the network for its device.
    validate_every : int, optional
        Steps from one validation to the next; absent: once an epoch.
    monitor : str
        The validation score by which the best weights are chosen (`unetflow.nn.scores`).
    patience : int, optional
        Validations in a row without a better score after which training ends; absent: none does.
    checkpoint_minutes : float
    seed : int
    augmentation : Augmentation
    memory_bytes : int
        Training patches kept in memory.
    """

    steps: int
    learning_rate: float
    batch_size: int = 1
    accumulate: int = 1
    optimizer: OptimizerName = "sgd"
    momentum: float = 0.99
    weight_decay: float = 0.0
    schedule: ScheduleName = "constant"
    loss: str = "cross_entropy"
    deep_supervision: bool = False
    precision: str = "auto"
    clip: float | None = None
    ema: float = 0.0
    compile: bool = False
    validate_every: int | None = None
    monitor: str = "loss"
    patience: int | None = None
    checkpoint_minutes: float = 10.0
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)
    memory_bytes: int = 4 * 2**30

    def __post_init__(self) -> None:
        if self.loss not in ("cross_entropy", "cross_entropy+dice"):
            raise InputError(f"loss must be cross_entropy or cross_entropy+dice, got '{self.loss}'; use cross_entropy")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema must be at least 0 and below 1, got {self.ema}; use 0.999, or 0 for none")
        for name in ("steps", "batch_size", "accumulate", "patience"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}; use 1")
        learning_rate_at(self.schedule, 0, self.steps, self.learning_rate)

    @property
    def patches_a_step(self) -> int:
        """Patches that one step sees."""
        return self.batch_size * self.accumulate
