"""Demo: make a small volume, run every stage on it, score the part that was not trained on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unetflow.stages.results import DemoResult
from unetflow.stages.work import Conditions

if TYPE_CHECKING:
    from unetflow.settings import Settings

log = logging.getLogger(__name__)

SHAPE = (12, 512, 1024)
TRAINED = "0:12,0:512,0:512"
HELD_OUT = "0:12,0:512,544:1024"
VOXEL_SIZE = (0.05, 0.01, 0.01)
CELL_SIZE = 40.0

PROJECT = """# Written by `unetflow demo`; change numbers and run the stages by hand.
[run]
dir = "run"
seed = {seed}

[[data]]
raw = "raw.zarr"
labels = "labels.zarr"
kind = "instances"
roi = "{roi}"             # the left half; the right one is kept for the scores

[prepare]
patches = 96
patch_shape = [1, 252, 252]
elastic_sigma = 4.0

[model]
dims = 2                  # plane by plane: the planes lie five times as far apart as the pixels
depth = 3
base_channels = 12
norm = "batch"            # trains in minutes where the paper's network takes hours

[train]
steps = 240
batch_size = 2
optimizer = "adam"
learning_rate = 0.002
schedule = "cosine"
validate_every = 60

[segment]
outputs = ["probabilities", "classes", "instances"]
threshold = 0.4           # the border weight makes gaps likelier than they are
min_size = 60
"""


def demo(
    folder: str | Path = "unetflow-demo",
    client: Any = None,
    *,
    seed: int = 0,
    conditions: Conditions | None = None,
    overwrite: bool = False,
    on_event: Callable[[dict[str, Any]], None] | None = None,
) -> DemoResult:
    """Make a volume and take it through prepare, train, segment, evaluate and report.

    Parameters
    ----------
    folder : path
        Where everything goes.
    client : distributed.Client, optional
        Where blocks run; None is a plain loop.
    seed : int
        Of the volume and of the training.
    conditions : Conditions, optional
        Client, progress, and when to stop, in one record.
    overwrite : bool
        Start anew, whatever an earlier run left.
    on_event : callable, optional
        Told of steps, validations and checkpoints of the training.

    Returns
    -------
    DemoResult
        The scores on the part that was not trained on, and where to look.
    """
    from unetflow.settings import load_settings
    from unetflow.stages.evaluate import evaluate
    from unetflow.stages.prepare import prepare
    from unetflow.stages.report import report
    from unetflow.stages.segment import segment
    from unetflow.stages.synthetic import make_tissue
    from unetflow.stages.train import train

    conditions = conditions or Conditions(client)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    raw, labels = place / "raw.zarr", place / "labels.zarr"
    log.info("1 of 5: a volume of %s voxels that looks like tissue", " x ".join(map(str, SHAPE)))
    make_tissue(
        str(raw), str(labels), SHAPE, seed=seed, voxel_size=VOXEL_SIZE, cell_size=CELL_SIZE,
        overwrite=overwrite, conditions=conditions,
    )  # fmt: skip
    project = place / "unetflow.toml"
    if overwrite or not project.exists():
        project.write_text(PROJECT.format(seed=seed, roi=TRAINED), encoding="utf-8")
    settings = load_settings(project)
    log.info("2 of 5: weight maps and elastic-deformed patches")
    prepare(settings, conditions=conditions, overwrite=overwrite)
    log.info("3 of 5: a U-Net")
    trained = train(settings, conditions=conditions, overwrite=overwrite, on_event=on_event)
    log.info("4 of 5: the whole chain on the half that it has not seen")
    out = place / "segmented.zarr"
    found = segment(settings, str(raw), out=str(out), roi=HELD_OUT, conditions=conditions, overwrite=overwrite)
    log.info("5 of 5: scores, plane by plane")
    scores = evaluate(settings, str(out), str(labels), sections=True, conditions=conditions)
    picture = place / "segmentation.png"
    _draw(settings, raw, out, labels, picture)
    told = report(out, out=place / "report.html")
    return {
        "folder": str(place),
        "report": told["report"],
        "picture": str(picture),
        "out": str(out),
        "objects": found["objects"],
        "steps": trained["steps"],
        "ap50": scores["ap50"],
        "seg": scores["seg"],
        "pixel_error": scores["pixel_error"],
        "adapted_rand_error": scores["adapted_rand_error"],
        "warping_error": scores["warping_error"],
    }


def _draw(settings: Settings, raw: Path, out: Path, labels: Path, picture: Path) -> None:
    """Put raw, truth, probability and objects of one held-out plane side by side."""
    import matplotlib
    from PIL import Image

    from unetflow.geometry import parse_roi
    from unetflow.storage.volume import open_volume

    box = parse_roi(HELD_OUT, SHAPE)
    middle = (box.start[0] + box.stop[0]) // 2
    plane = type(box)((middle, *box.start[1:]), (middle + 1, *box.stop[1:]))
    image = open_volume(str(raw)).read(plane)[0, 0]
    truth = open_volume(str(labels)).read(plane)[0, 0]
    here = plane.relative_to(box)
    p = open_volume(str(out)).read(here)[-1, 0]
    found = open_volume(str(out / "labels" / "instances")).read(here)[0, 0]
    gray = matplotlib.colormaps["gray"]
    panels = [gray(image / 255.0), colour(truth), gray(p / 255.0), colour(found)]
    rows = np.concatenate([panel[..., :3] for panel in panels], 1)
    Image.fromarray((rows * 255).astype(np.uint8)).save(picture)


def colour(ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Give each object a colour of its own; background is black."""
    import matplotlib

    mixed = (ids.astype(np.uint64) * np.uint64(2654435761)) % np.uint64(256)
    shown = matplotlib.colormaps["hsv"](mixed.astype(np.uint8))
    shown[ids == 0] = (0, 0, 0, 1)
    return np.asarray(shown)
