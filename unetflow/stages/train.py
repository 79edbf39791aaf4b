"""Train: a U-Net from the patches of ``RUN/dataset.zarr`` into ``RUN/model.safetensors``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError, Interrupted
from unetflow.stages.facts import read_facts
from unetflow.stages.finetune import Start, start_from
from unetflow.stages.network import model_spec
from unetflow.stages.predicted import watch
from unetflow.stages.results import TrainResult
from unetflow.stages.work import Conditions, open_work, versions

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch

    from unetflow.nn.group import Group
    from unetflow.nn.recipe import Recipe
    from unetflow.runtime.rank import Rank
    from unetflow.settings import Settings


DEFAULT_STEPS = 10_000
DEFAULT_LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Plan:
    """What `train` will do, worked out from settings and the dataset's record."""

    settings: Settings
    facts: dict[str, Any]
    spec: UNetSpec
    steps: int
    start: Start | None

    @property
    def dataset(self) -> str:
        """The patch store."""
        return str(self.settings.run_folder / "dataset.zarr")

    @property
    def model(self) -> Path:
        """Where the result goes."""
        return self.settings.run_folder / "model.safetensors"

    def summary(self) -> dict[str, Any]:
        """Return what ``--plan`` prints."""
        train = self.settings.train
        return {
            "patches": self.facts["patches"],
            "patch_shape": self.facts["patch_shape"],
            "output_shape": self.facts["output_shape"],
            "network": self.spec.to_dict(),
            "steps": self.steps,
            "batch_size": train.batch_size,
            "patches_a_step": train.batch_size * train.accumulate,
            "epochs": round(self.steps * train.batch_size * train.accumulate / self.facts["patches"]["train"], 2),
            "model": str(self.model),
        }


def plan(settings: Settings, initial: str | None = None, new_head: bool = False) -> Plan:
    """Check that dataset, network and the model to begin with fit; every refusal happens here.

    Raises
    ------
    InputError
        If there is no finished dataset, or its patches do not fit the network.
    """
    facts = read_facts(settings.run_folder)
    spec = model_spec(
        settings, facts["in_channels"], facts["n_classes"], is_multilabel=facts["kind"] == "multilabel"
    )
    patch, output = tuple(facts["patch_shape"]), tuple(facts["output_shape"])
    if len(patch) != spec.dims or not spec.accepts(patch) or spec.output_shape(patch) != output:
        raise InputError(
            f"the network must take the prepared patches {patch} -> {output}, got one that does not "
            f"(depth {spec.depth}, padding {spec.padding}); run unetflow prepare --overwrite with the new [model]"
        )
    _check_monitor(settings, facts)
    if settings.train.tensorboard:
        from unetflow.nn.board import check_board

        check_board()
    return Plan(settings, facts, spec, _count_steps(settings, facts), start_from(initial, new_head, spec, facts))


def _count_steps(settings: Settings, facts: dict[str, Any]) -> int:
    train = settings.train
    if train.steps is not None and train.epochs is not None:
        raise InputError("train takes steps or epochs, got both; remove one")
    if train.epochs is not None:
        return -(-train.epochs * int(facts["patches"]["train"]) // (train.batch_size * train.accumulate))
    return train.steps or DEFAULT_STEPS


def _check_monitor(settings: Settings, facts: dict[str, Any]) -> None:
    """Refuse a score that no validation gives."""
    from unetflow.nn.scores import larger_is_better

    train, n_classes = settings.train, int(facts["n_classes"])
    larger_is_better(train.monitor, n_classes, is_multilabel=facts["kind"] == "multilabel")
    if not facts["patches"].get("validation") and (train.patience is not None or train.monitor != "loss"):
        raise InputError(
            "train.patience and train.monitor need validation patches, got none; set prepare.validation_fraction "
            "and run unetflow prepare --overwrite, or remove them"
        )


def fingerprint(made: Plan) -> dict[str, Any]:
    """Return what the weights depend on; a larger number of steps may come later."""
    settings = made.settings
    free = {"steps", "epochs", "checkpoint_minutes", "validate_every", "patience", "tensorboard"}
    return {
        "dataset": made.facts["fingerprint"],
        "model": made.spec.to_dict(),
        **({"deep_supervision": True} if settings.model.deep_supervision else {}),
        "train": settings.train.model_dump(mode="json", exclude=free),
        "seed": settings.run.seed,
        "from": made.start and made.start.digest,
    }


def train(
    settings: Settings,
    client: Any = None,
    *,
    conditions: Conditions | None = None,
    initial: str | None = None,
    new_head: bool = False,
    overwrite: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> TrainResult:
    """Train a network, or go on where the last run stopped.

    Parameters
    ----------
    settings : Settings
        The project; ``RUN/dataset.zarr`` must be there.
    client : distributed.Client, optional
        Where the training process runs; None is this process.
    initial : str, optional
        A model file or run folder whose weights are the start (fine-tuning).
    new_head : bool
        Draw the last layer anew, for other classes than those of that model.
    conditions : Conditions, optional
        Client, progress, and when to stop, in one record.
    overwrite : bool
        Start anew, whatever an earlier run left.
    on_event : callable, optional
        Told of steps, validations and checkpoints.

    Returns
    -------
    TrainResult
        The model's path, the steps, the score.

    Raises
    ------
    InputError
        For everything that `plan` refuses, before anything is written; or if another run holds the place, or began
        it with other settings.
    StageError
        If the work cannot be done for a reason outside of its input.
    Interrupted
        If it was stopped; the same call goes on.
    """
    import shutil

    from unetflow.nn.accelerators import accelerators
    from unetflow.runtime.ranks import run_ranks

    conditions = conditions or Conditions(client)
    made = plan(settings, initial, new_head)
    folder = settings.run_folder
    with open_work("train", folder, fingerprint(made), conditions, overwrite=overwrite) as work:
        if work.ledger.value("started") is None:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            (folder / "metrics.csv").unlink(missing_ok=True)
            work.ledger.set_value("started", True)
            work.ledger.flush()
        result = run_ranks(
            train_rank,
            {"made": made, "provenance": _provenance(made)},
            conditions.client,
            most=settings.train.batch_size,
            accelerators=accelerators,
            on_event=on_event,
            should_stop=work.conditions.should_stop,
        )
    if result.get("is_stopped"):
        raise Interrupted(f"training stopped after step {result['step']} of {made.steps}; a checkpoint is written")
    return cast(TrainResult, {"model": str(made.model), **result, "seconds": work.totals()["seconds"]})


def _provenance(made: Plan) -> dict[str, Any]:
    """Return what travels with the weights, so that `segment` needs nothing else."""
    facts = made.facts
    keep = (
        "kind", "n_classes", "in_channels", "axes", "dims", "voxel_size", "dtype", "class_map", "ignore", "normalise",
        "normalise_per", "normalisation", "patch_shape", "output_shape", "class_counts",
    )  # fmt: skip
    return {
        **{key: facts[key] for key in keep},
        "unit": facts.get("unit"),
        "settings": made.settings.model_dump(mode="json", include={"prepare", "model", "train"}),
        "seed": made.settings.run.seed,
        "dataset": facts["fingerprint"],
        "versions": versions(),
    }


def train_rank(rank: Rank, *, made: Plan, provenance: dict[str, Any]) -> dict[str, Any]:
    """Train on one worker, beside others; the loop itself is `unetflow.nn.loop.train`."""
    from unetflow.nn.device import pick_device

    with join_ranks(rank, pick_device("cpu" if rank.device is None else f"cuda:{rank.device}")) as group:
        return _train_in(group, rank, made, provenance)


def join_ranks(rank: Rank, device: torch.device) -> AbstractContextManager[Group]:
    """Meet the other ranks: see `unetflow.nn.group.join`."""
    from unetflow.nn.group import Meeting, join

    meeting = rank.meeting and Meeting(*rank.meeting, own_host=rank.host, listener=rank.listener)
    return join(rank.number, rank.world, device, meeting, rank.wait)


def _train_in(group: Group, rank: Rank, made: Plan, provenance: dict[str, Any]) -> dict[str, Any]:
    """Train as one of a group; rank 0 writes the model."""
    from unetflow.nn import checkpoint, loop
    from unetflow.nn.unet import UNet
    from unetflow.storage.patches import open_patches

    folder = made.settings.run_folder
    has_validation = bool(made.facts["patches"].get("validation"))
    seed, deep = made.settings.run.seed, made.settings.model.deep_supervision
    initial = made.start.weights(made.spec, seed=seed, deep_supervision=deep) if made.start else None
    validation = open_patches(made.dataset, "validation") if has_validation else None
    normalise = PatchNormaliser.of(made.facts, "validation")
    shows = made.settings.train.tensorboard and group.rank == 0
    with watch(
        folder, made.facts, made.spec, validation, normalise, rank.emit, tensorboard=shows
    ) as (tell, look):  # fmt: skip
        result = loop.train(
            open_patches(made.dataset, "train"),
            validation,
            spec=made.spec,
            recipe=_recipe(made),
            folder=folder / "checkpoints",
            prepare=PatchNormaliser.of(made.facts, "train"),
            prepare_validation=normalise,
            initial_state=initial,
            metrics=folder / "metrics.csv",
            on_event=tell,
            look=look,
            should_stop=rank.should_stop,
            threads=rank.threads,
            group=group,
            beat=rank.beat,
        )
    if group.rank:
        return {}
    if result.is_stopped:
        return {"step": result.step, "steps": made.steps, "is_stopped": True}
    monitored = f"validation_{made.settings.train.monitor}"
    scores = {"step": result.best_step or result.step, monitored: result.best_score}
    checkpoint.export_model(made.model, UNet(made.spec), {**provenance, "scores": scores}, result.state)
    last = {f"validation_{name}": value for name, value in result.scores.items()}
    return {
        "steps": result.step,
        "best_step": scores["step"],
        "ranks": group.world,
        "wait": round(result.wait, 4),
        **last,
        monitored: result.best_score,
    }


def _recipe(made: Plan) -> Recipe:
    """Return the numbers of the training, as the loop takes them."""
    from unetflow.nn.augment import Augmentation
    from unetflow.nn.recipe import Recipe

    train = made.settings.train
    same = (
        "batch_size", "accumulate", "optimizer", "momentum", "weight_decay", "schedule", "loss", "precision", "clip",
        "compile", "validate_every", "monitor", "patience", "checkpoint_minutes",
    )  # fmt: skip
    return Recipe(
        steps=made.steps,
        learning_rate=train.learning_rate or DEFAULT_LEARNING_RATE,
        ema=train.ema or 0.0,
        deep_supervision=made.settings.model.deep_supervision,
        seed=made.settings.run.seed,
        augmentation=Augmentation(
            train.flips, train.turns and _is_square_plane(made), train.brightness, train.contrast, train.noise,
            train.blur,
        ),  # fmt: skip
        **{name: getattr(train, name) for name in same},
    )


def _is_square_plane(made: Plan) -> bool:
    """Say whether a quarter turn keeps patch shape and voxel size."""
    patch, size = made.facts["patch_shape"], made.facts["voxel_size"]
    return bool(patch[-1] == patch[-2] and abs(size[-1] / size[-2] - 1) < 0.01)


@dataclass(frozen=True)
class PatchNormaliser:
    """Normalise patches with the statistics of the volume that each was cut from."""

    offset: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]

    @classmethod
    def of(cls, facts: dict[str, Any], split: str) -> PatchNormaliser:
        """Look up the volume of each patch in the dataset's record."""
        volumes = [facts["volumes"][index] for index in facts["patch_volume"].get(split, [])]
        return cls(
            np.array([v["offset"] for v in volumes], np.float32), np.array([v["scale"] for v in volumes], np.float32)
        )

    def __call__(self, image: npt.NDArray[Any], numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        """Return patches ``(B, C, *S)`` as float32."""
        index: Any = (numbers, ..., *(np.newaxis,) * (image.ndim - 2))
        return np.asarray((image.astype(np.float32) - self.offset[index]) / self.scale[index], np.float32)
