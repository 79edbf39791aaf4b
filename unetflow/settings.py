"""The project file as frozen, validated records.

Each field has a line of text with its unit; a default stands once, here, and is the 2015
paper's number where there is one. `load_settings` reads ``unetflow.toml``, applies
``--set section.key=value`` and refuses unknown keys with the nearest known one.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from unetflow.errors import InputError
from unetflow.memory import parse_bytes

PROJECT_FILE = "unetflow.toml"

Lengths = tuple[int, ...]
Positive = Annotated[int, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
OptimizerName = Literal["sgd", "adam", "adamw"]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, int) else value


# What a file may say where a record holds something else: the schema for editors tells it too.
OneOrMore = Annotated[tuple[int, ...], BeforeValidator(_listed, json_schema_input_type=int | tuple[int, ...])]
Amount = Annotated[int, Field(gt=0), BeforeValidator(parse_bytes, json_schema_input_type=int | str)]


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Run(Record):
    """Where a run's results go."""

    dir: str = Field("run", description="folder of the run's results")
    seed: int = Field(0, ge=0, description="seed of everything random")


class Data(Record):
    """One annotated volume, or a collection of images."""

    raw: str = Field(description="Zarr array, OME-Zarr image or group of images with the raw data")
    labels: str = Field(description="the same for the annotation; may cover a part of the raw")
    kind: Literal["instances", "classes", "multilabel"] = Field(
        "instances", description="instances = object ids, classes = class indices, multilabel = c axis of 0/1 masks"
    )
    role: Literal["train", "validation"] = Field("train", description="train on it, or only validate")
    mask: str | None = Field(None, description="Zarr of the labels' shape; where it is 0 nothing is learnt")
    class_map: dict[int, int] | None = Field(
        None, description="label value -> class index; any other value is refused"
    )
    ignore: OneOrMore = Field((), description="raw label values that weigh 0 and belong to no object")
    axes: str | None = Field(None, description="axes of the arrays, letters of tczyx, where metadata has none")
    voxel_size: tuple[float, ...] | None = Field(None, description="per spatial axis, in micrometres")
    level: int = Field(0, ge=0, description="level of a multiscale raw image")
    roi: str | None = Field(None, description="z0:z1,y0:y1,x0:x1 of the raw volume, in voxels; the rest is not used")


class Prepare(Record):
    """Weight maps and elastic-deformed patches."""

    w0: float = Field(10.0, ge=0, description="height of the border weight")
    sigma: float = Field(5.0, gt=0, description="width of the border weight, in voxels of the finest axis")
    border_where: Literal["background", "everywhere"] = Field(
        "background", description="where the border weight stands"
    )
    tolerance: float = Field(1e-5, gt=0, description="border weights below it are 0 by definition")
    class_balance: bool = Field(True, description="weigh classes by N / (K N_k); false: 1")
    patches: Positive = Field(1000, description="number of training patches")
    patch_shape: Lengths | None = Field(
        None, description="the network's input per spatial axis, in voxels; absent: chosen"
    )
    foreground_fraction: Fraction | None = Field(
        None, description="share of patches centred on foreground; absent: centres are uniform"
    )
    elastic_grid: int = Field(3, ge=2, description="points of the coarse displacement grid per axis")
    elastic_sigma: float = Field(10.0, ge=0, description="their deviation, in voxels of the finest axis; 0: none")
    interpolation_order: Literal[0, 1, 3] = Field(3, description="of the image: 3 cubic, 1 linear, 0 nearest")
    validation_fraction: Fraction = Field(0.1, description="share of images, planes or depth held out; 0: none")
    normalise: Literal["percentile", "zscore", "none"] = Field(
        "percentile", description="percentile maps 1 % and 99 % to -1 and 1"
    )
    normalise_per: Literal["volume", "training"] = Field(
        "volume", description="statistics of each volume or image, or those of the training data"
    )
    chunk: Lengths | None = Field(None, description="chunk of the weight maps per spatial axis, in voxels")
    shard: Lengths | None = Field(None, description="shard of the weight maps per spatial axis, in voxels")
    missing: Literal["fill", "refuse"] = Field("fill", description="what chunks that are not stored are: fill value")


class Model(Record):
    """The U-Net."""

    preset: Literal["unet2015", "keras"] = Field("unet2015", description="numbers for what is not set here")
    dims: Literal[2, 3] = Field(2, description="axes the network sees; 2 takes stacks plane by plane")
    depth: int = Field(4, ge=1, le=8, description="number of poolings")
    base_channels: Positive = Field(64, description="feature channels of the first level; they double with depth")
    padding: Literal["valid", "same"] = Field("valid", description="unpadded, or zero-padded convolutions")
    upsample: Literal["transpose", "resize"] = Field("transpose", description="transposed, or nearest and convolution")
    skip: Literal["concat", "sum"] = Field("concat", description="join skips by concatenation, or sum as an FCN")
    norm: Literal["none", "batch", "layer"] = Field("none", description="normalisation after each convolution")
    dropout: float = Field(0.5, ge=0, lt=1, description="at the end of the contracting path")
    deep_supervision: bool = Field(False, description="while training, ask the network at its coarser levels too")
    head: Literal["softmax", "sigmoid"] = Field("softmax", description="multilabel needs sigmoid")
    pool: tuple[Lengths, ...] | None = Field(None, description="window per level and axis; absent: 2 everywhere")
    kernel: int | Lengths | tuple[Lengths, ...] | None = Field(None, description="odd lengths; absent: 3 everywhere")


class Train(Record):
    """The training loop."""

    steps: Positive | None = Field(None, description="optimiser steps; absent with epochs absent: 10000")
    epochs: Positive | None = Field(None, description="passes over the training patches, instead of steps")
    batch_size: Positive = Field(1, description="patches of one forward pass, shared by the ranks")
    accumulate: Positive = Field(1, description="batches whose gradients are added up before a step")
    optimizer: OptimizerName = Field("sgd", description="sgd with momentum, adam or adamw")
    learning_rate: float | None = Field(None, gt=0, description="absent: 0.001; 0.0001 for the keras preset")
    momentum: float = Field(0.99, ge=0, lt=1, description="of sgd")
    weight_decay: float = Field(0.0, ge=0, description="of the optimiser")
    schedule: Literal["constant", "cosine", "poly"] = Field("constant", description="of the rate, over all steps")
    loss: Literal["cross_entropy", "cross_entropy+dice"] = Field(
        "cross_entropy", description="weighted by the weight map"
    )
    precision: Literal["auto", "float32", "bf16"] = Field("auto", description="auto: bf16 on a GPU, float32 on a CPU")
    compile: bool = Field(False, description="have torch compile the network: minutes at first, then faster steps")
    checkpoint_minutes: float = Field(10.0, gt=0, description="between two checkpoints")
    validate_every: Positive | None = Field(None, description="steps between two validations; absent: an epoch")
    monitor: str = Field("loss", description="validation score that chooses the best weights: loss, dice, iou ...")
    patience: Positive | None = Field(
        None, description="validations without a better score after which training ends; absent: all steps are done"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] | None = Field(
        None, description="decay of an average of the weights, for instance 0.999; absent: none"
    )
    clip: float | None = Field(None, gt=0, description="largest norm of the gradient; absent: none")
    tensorboard: bool = Field(False, description="write for TensorBoard too, into RUN/tensorboard")
    flips: bool = Field(True, description="mirror patches at random")
    turns: bool = Field(True, description="turn patches by quarters where the shape and voxel size allow")
    brightness: float = Field(0.0, ge=0, description="deviation of a random offset, in normalised intensity")
    contrast: float = Field(0.0, ge=0, lt=1, description="deviation of the logarithm of a random factor")
    noise: float = Field(0.0, ge=0, description="largest deviation of added noise, in normalised intensity")
    blur: float = Field(0.0, ge=0, description="largest deviation of a blur along y and x, in voxels of each")


class Segment(Record):
    """Blockwise overlap-tile inference."""

    outputs: tuple[Literal["probabilities", "classes", "instances"], ...] = Field(
        ("probabilities", "classes"), description="what is written"
    )
    dtype: Literal["uint8", "float16", "float32"] = Field("uint8", description="of the probabilities; uint8 is p * 255")
    threshold: Fraction = Field(0.5, description="of the foreground probability, for two classes")
    min_size: int = Field(0, ge=0, description="objects with fewer voxels are dropped")
    fill_holes: bool | Positive = Field(
        False, description="fill what objects enclose, by faces: true = all holes, N = those of at most N voxels"
    )
    instances: Literal["components", "watershed"] = Field(
        "components", description="how objects are told apart: where they do not touch, or flooded from seeds"
    )
    seeds: Literal["probability", "distance"] = Field(
        "probability", description="where a watershed's seeds are: likely places, or places deep in the classes"
    )
    seed_distance: float = Field(
        5.0, gt=0, lt=48, description="seeds by distance lie farther than this from what is no object, in finest voxels"
    )
    seed_threshold: Fraction = Field(
        0.9, description="a watershed's seeds are the components of foreground probability above this"
    )
    seed_size: Positive = Field(
        30, description="seeds with fewer voxels are none; in the plane with dims = 2, unless link"
    )
    connectivity: Literal["face", "full"] = Field("face", description="objects hang together by faces, or corners too")
    link: bool | Literal["overlap"] = Field(
        False, description="with dims = 2: join objects over planes and times that touch; overlap: by link_iou over z"
    )
    link_iou: float = Field(
        0.5, gt=0, le=1, description="with link overlap: objects of neighbouring planes are one from this IoU on"
    )
    tta: bool = Field(False, description="average over flips and turns: 8 times the work in 2-D, 16 in 3-D")
    mode: Literal["exact", "blend"] = Field(
        "exact", description="exact: as one pass over the whole volume; blend: overlapping windows, less context"
    )
    overlap: float = Field(0.25, ge=0, le=0.5, description="share of a window that a blend's next one covers too")
    chunk: Lengths | None = Field(None, description="of the outputs, per spatial axis, in voxels")
    shard: Lengths | None = Field(None, description="of the outputs, per spatial axis, in voxels")
    missing: Literal["fill", "refuse"] = Field("fill", description="what chunks that are not stored are: fill value")
    voxel_size: Literal["tell", "resample", "refuse"] = Field(
        "tell", description="a volume's voxels are not the model's: tell; resample what the network sees; refuse"
    )
    tile: Lengths | None = Field(None, description="kept voxels of one forward pass per spatial axis")
    memory: Amount = Field(
        2_000_000_000, description="for one forward pass, in bytes or as '2 GB'"
    )


class Cluster(Record):
    """Where the work runs: the name of a cluster file, or its options."""

    file: str | None = Field(None, description="name of a file of cluster/, or a path")
    kind: str | None = Field(None, description="local, cuda, slurm, pbs, lsf, sge or address")
    workers: int | str | None = Field(None, description="N, or N:M for adaptive")
    block_minutes: float = Field(
        60.0, gt=0, description="a worker that finishes no block for so long hangs, and is restarted"
    )
    options: dict[str, Any] = Field({}, description="handed to the cluster class under the same names")


class Settings(Record):
    """The whole project file."""

    run: Run = Run()
    data: tuple[Data, ...] = ()
    prepare: Prepare = Prepare()
    model: Model = Model()
    train: Train = Train()
    segment: Segment = Segment()
    cluster: Cluster = Cluster()
    folder: str = Field(".", exclude=True, description="where the project file lies; paths are relative to it")

    @model_validator(mode="before")
    @classmethod
    def _fill_preset(cls, values: Any) -> Any:
        """Let a preset fill what the file does not say."""
        if not isinstance(values, dict):
            return values
        model = values.get("model", {})
        if not isinstance(model, dict) or model.get("preset") != "keras":
            return values
        keras = {"padding": "same", "upsample": "resize", "head": "sigmoid"}
        trained = {"optimizer": "adam", "learning_rate": 1e-4}
        given = values.get("train", {})
        if isinstance(given, dict) and "optimizer" in given:
            trained.pop("learning_rate")
        return {**values, "model": keras | model, "train": trained | given}

    @property
    def run_folder(self) -> Path:
        """Folder of the run's results."""
        return Path(self.folder, self.run.dir)

    def resolve(self, path: str) -> str:
        """Return a path of the file as seen from the current folder; URLs stay."""
        return path if "://" in path else str(Path(self.folder, path))


def load_settings(file: str | Path | None = None, assignments: Sequence[str] = ()) -> Settings:
    """Read the project file and apply ``section.key=value`` assignments.

    Parameters
    ----------
    file : str, pathlib.Path, optional
        The project file; without one ``./unetflow.toml`` is read if it exists.
    assignments : sequence of str
        Each wins over the file. The value is TOML, else a string.

    Raises
    ------
    InputError
        If the file is missing or no TOML, a key is unknown or a value is wrong.
    """
    values: dict[str, Any] = {}
    path = Path(file or PROJECT_FILE)
    if file is not None and not path.is_file():
        raise InputError(f"the project file must exist, got {path}; make one with: unetflow init")
    if path.is_file():
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as cause:
            raise InputError(f"{path} must be TOML: {cause}") from None
    for assignment in assignments:
        _assign(values, assignment)
    return make_settings(values, folder=str(path.parent), source=str(path) if path.is_file() else "--set")


def make_settings(values: dict[str, Any], folder: str = ".", source: str = "settings") -> Settings:
    """Check a nested dictionary of settings.

    Raises
    ------
    InputError
        With rule, value and cure of the first thing that is wrong.
    """
    if "folder" in values:
        raise InputError(_unknown(source, ("folder",)))
    try:
        return Settings.model_validate({**values, "folder": folder})
    except ValidationError as cause:
        raise InputError(_explain(cause, source)) from None


def with_values(settings: Settings, values: dict[str, Any]) -> Settings:
    """Return settings in which nested ``values`` win; what was never set stays unset."""
    merged: dict[str, Any] = settings.model_dump(exclude_unset=True)
    merged.pop("folder", None)
    for section, keys in values.items():
        merged[section] = {**merged.get(section, {}), **keys} if isinstance(keys, dict) else keys
    return make_settings(merged, folder=settings.folder)


def _assign(values: dict[str, Any], assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    names = key.strip().split(".")
    if not equals or len(names) < 2 or not all(names):
        raise InputError(f"--set needs section.key=value, got '{assignment}'; for instance train.steps=500")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    for name in names[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise InputError(f"--set cannot reach into '{name}', got '{assignment}'; edit the project file")
    values[names[-1]] = value


def _explain(cause: ValidationError, source: str) -> str:
    error = cause.errors()[0]
    where = ".".join(str(part) for part in error["loc"] if part != "function-after")
    if error["type"] == "extra_forbidden":
        return _unknown(source, error["loc"])
    if error["type"] == "missing":
        return f"{source}: {where} is needed; write it into the [[data]] table"
    return f"{source}: {where}: {error['msg'].lower()}, got {error['input']!r}"


def _unknown(source: str, location: Sequence[Any]) -> str:
    record: Any = Settings
    for part in location[:-1]:
        if isinstance(part, int):
            continue
        annotation = record.model_fields[part].annotation
        record = Data if part == "data" else annotation
    known = [name for name in record.model_fields if name != "folder"]
    name = str(location[-1])
    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}"
    return f"{source}: unknown key '{'.'.join(str(p) for p in location)}'; {hint}"
