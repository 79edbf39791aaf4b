"""What the stages' functions return, and ``--json`` prints: plain dictionaries whose keys a type checker knows.

Keys that are only sometimes there are `NotRequired`, with the reason beside them. All values are JSON. Annotations are
no strings here, or nobody could ask at run time which keys are required.
"""

from typing import Any, NotRequired, TypedDict


class Totals(TypedDict):
    """What every stage that works in blocks tells of them.

    ``quarantined`` names blocks as ``pass:number``; ``seconds`` is wall time.
    """

    blocks: int
    blocks_skipped: int
    retries: int
    quarantined: list[str]
    seconds: float


class ConvertResult(TypedDict):
    """Of `convert`; with ``plan_only`` what it would do, and none of the totals but ``blocks``."""

    target: str
    images: int | list[str]  # the names of a collection's
    shape: list[int]
    axes: str
    voxel_size: list[float]
    blocks: int
    blocks_compared: NotRequired[int]
    blocks_skipped: NotRequired[int]
    retries: NotRequired[int]
    quarantined: NotRequired[list[str]]
    seconds: NotRequired[float]
    chunk: NotRequired[list[int]]  # these three with plan_only
    shard: NotRequired[list[int]]
    block: NotRequired[list[int]]


class InitResult(TypedDict):
    """Of `init`; without arrays it is the file alone."""

    file: str
    kind: NotRequired[str]
    dims: NotRequired[int]
    axes: NotRequired[str]
    shape: NotRequired[list[int]]
    voxel_size: NotRequired[list[float]]
    images: NotRequired[int]
    reason: NotRequired[str]


class PrepareResult(Totals):
    """Of `prepare`. ``class_weights`` are pairs for multilabel; ``missing_chunks`` is None where nobody knows."""

    dataset: str
    images: int
    classes: int
    class_weights: list[Any]
    patch_shape: list[int]
    output_shape: list[int]
    patches: dict[str, int]
    previews: list[str]
    missing_chunks: int | None


class TrainResult(TypedDict):
    """Of `train`. With several foreground classes there are ``validation_dice/1`` and so on too."""

    model: str
    steps: int
    best_step: int
    ranks: int
    wait: float  # share of the steps' time
    seconds: float
    validation_loss: NotRequired[float | None]  # None without held-out patches
    validation_pixel_error: NotRequired[float]
    validation_dice: NotRequired[float]
    validation_iou: NotRequired[float]
    validation_adapted_rand_error: NotRequired[float]


class SegmentResult(Totals):
    """Of `segment`; with ``part`` the place, the part and the totals alone."""

    out: str
    images: NotRequired[int]
    mode: NotRequired[str]
    cost: NotRequired[dict[str, dict[str, Any]]]  # planned and real, see `unetflow.stages.figures.compare`
    missing_chunks: NotRequired[int | None]
    objects: NotRequired[int]  # with instances, unless blocks are quarantined
    seam_score: NotRequired[float]  # where blocks have faces along axes that the network sees
    part: NotRequired[str]


class Scores(Totals):
    """Of `evaluate` and `score`; a score that is not defined is None. Those of objects need objects."""

    sections: int | None
    images: int
    pixel_error: float | None
    iou: dict[str, float | None]  # by class
    dice: dict[str, float | None]
    warping_error: float | None
    adapted_rand_error: NotRequired[float | None]
    rand_precision: NotRequired[float | None]
    rand_recall: NotRequired[float | None]
    voi_split: NotRequired[float | None]
    voi_merge: NotRequired[float | None]
    seg: NotRequired[float | None]
    ap50: NotRequired[float | None]
    ap55: NotRequired[float | None]
    ap60: NotRequired[float | None]
    ap65: NotRequired[float | None]
    ap70: NotRequired[float | None]
    ap75: NotRequired[float | None]
    ap80: NotRequired[float | None]
    ap85: NotRequired[float | None]
    ap90: NotRequired[float | None]
    map: NotRequired[float | None]
    overlays: NotRequired[list[str]]  # the pictures, where a folder for them was named


class VerifyResult(Totals):
    """Of `verify`. ``damaged`` and ``mismatches`` are empty where all is well."""

    out: str
    arrays: int
    files: int
    damaged: list[dict[str, Any]]  # array, box, file, cause
    recomputed: list[int]
    mismatches: list[dict[str, Any]]  # block, box, array, voxels, first, file, stored, and computed or class
    seed: int


class ReportResult(TypedDict):
    """Of `report`."""

    report: str
    bytes: int
    neuroglancer: NotRequired[str | dict[str, str]]  # a link, or one an image, for an output behind a URL


class DemoResult(TypedDict):
    """Of `demo`."""

    folder: str
    report: str
    picture: str
    out: str
    objects: int
    steps: int
    ap50: float | None
    seg: float | None
    pixel_error: float | None
    adapted_rand_error: float | None
    warping_error: float | None


class LabelResult(Totals):
    """Of `label_volume`, where the labels go to a store."""

    out: str
    objects: int
