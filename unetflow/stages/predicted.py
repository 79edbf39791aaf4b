"""Pictures of what the network answers while it learns, at each validation.

::

    RUN/previews/validation-<step>.png    a row a patch:  raw | truth | probability | answer, errors in red and blue

The patches are the same each time, spread over those held out; of 3-D patches the middle plane is shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box, Shape
from unetflow.stages.previews import middle

if TYPE_CHECKING:
    from unetflow.architecture import UNetSpec
    from unetflow.nn.board import Board
    from unetflow.stages.panels import Picture
    from unetflow.storage.patches import PatchStore

_MOST_PATCHES = 3
_PATTERN = "validation-*.png"
_WIDE, _GAP, _TITLE = 320, 6, 24  # pixels of a picture's longer side, about; between pictures; above them
_TITLES = ("truth", "probability", "answer: red missed, blue added or other")
_MISSED, _ADDED = (1.0, 0.25, 0.2), (0.2, 0.55, 1.0)  # red: not found; blue: not there

Array = npt.NDArray[Any]
Predict = Callable[[Array], Any]
Normalise = Callable[[Array, npt.NDArray[np.int64]], npt.NDArray[np.float32]]


@dataclass
class ValidationPreviews:
    """Draws a few validation patches with the network's answer.

    Parameters
    ----------
    source : PatchStore
        The validation patches.
    normalise : callable
        ``normalise(image (B, C, *S), numbers (B,)) -> float32``.
    head : {"softmax", "sigmoid"}
    margin : tuple of int
        By which the output is smaller than the image at each end.
    folder : pathlib.Path
        ``RUN/previews``.
    aspect : float
        Height of a voxel over its width.
    board : Board, optional
        Is shown each picture too.
    """

    source: PatchStore
    normalise: Normalise
    head: str
    margin: Shape
    folder: Path
    aspect: float = 1.0
    board: Board | None = None
    _is_swept: bool = field(default=False, init=False)

    def __call__(self, step: int, predict: Predict) -> None:
        """Draw the answers after a step.

        Parameters
        ----------
        step : int
        predict : callable
            ``predict(image (B, C, *S)) -> logits (B, K, *S_out)``, a tensor.
        """
        from PIL import Image

        self._sweep(step)
        numbers = np.unique(np.linspace(0, len(self.source) - 1, _MOST_PATCHES).astype(np.int64))
        image, target, weight = self.source.read(numbers.tolist())
        seen = self.normalise(image, numbers)
        # One by one: the memory of a training step has room for as many as it takes, not for more.
        logits = [predict(seen[i : i + 1]).float().cpu().numpy()[0] for i in range(len(numbers))]
        rows = [self._draw(*arrays) for arrays in zip(seen, target, weight, logits, strict=True)]
        picture = _page([f"raw, step {step}", *_TITLES], rows, self.aspect)
        Image.fromarray(picture).save(self.folder / f"validation-{step:08d}.png", compress_level=3)
        if self.board is not None:
            self.board.show("validation", step, picture)

    def _sweep(self, step: int) -> None:
        """Remove pictures of steps that a training before this one did, or that are done again."""
        if not self._is_swept:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(_PATTERN):
                if old.name >= f"validation-{step:08d}.png":
                    old.unlink()
            self._is_swept = True

    def _draw(self, image: Array, target: Array, weight: Array, logits: Array) -> list[Picture]:
        """Return the pictures of one patch, all of one shape."""
        from unetflow.stages.panels import grey, overlay

        dims = len(self.margin)
        plane = grey(middle(image, dims))
        truth, answer, chance = _layers(target, logits, self.head)
        valid = middle(weight.reshape(truth.shape) > 0, dims)
        truth, answer = middle(truth, dims), middle(answer, dims)
        output = Box.of_shape(truth.shape[-2:]).shift(self.margin[-2:])
        return [
            plane,
            overlay(plane, truth, output, is_ids=False),
            _placed(plane, middle(chance[None], dims)[0], output),
            _errors(overlay(plane, answer, output, is_ids=False), truth, answer, valid, output),
        ]


def _page(titles: Sequence[str], rows: Sequence[Sequence[Picture]], aspect: float) -> npt.NDArray[np.uint8]:
    """Put pictures side by side under their titles, row by row; a few milliseconds each."""
    from PIL import Image, ImageDraw

    height, width = rows[0][0].shape[:2]
    scale = max(1, round(_WIDE / max(height * aspect, width)))
    size = (scale * width, max(1, round(scale * height * aspect)))
    page = Image.new("RGB", (_GAP + len(titles) * (size[0] + _GAP), _TITLE + len(rows) * (size[1] + _GAP)), "white")
    for column, title in enumerate(titles):
        left = _GAP + column * (size[0] + _GAP)
        ImageDraw.Draw(page).text((left, _GAP), title, fill="black")
        for number, row in enumerate(rows):
            picture = Image.fromarray((row[column] * 255).round().clip(0, 255).astype(np.uint8))
            page.paste(picture.resize(size, Image.Resampling.NEAREST), (left, _TITLE + number * (size[1] + _GAP)))
    return np.asarray(page)


def _layers(target: Array, logits: Array, head: str) -> tuple[Array, Array, Array]:
    """Return truth and answer (n, *S), classes by number, and the chance of any foreground (*S)."""
    if head == "softmax":
        powers = np.exp(logits - logits.max(0))
        return target[None], logits.argmax(0)[None], 1 - powers[0] / powers.sum(0)
    chance = 1 / (1 + np.exp(-logits.clip(-60, 60)))
    truth = target.reshape(logits.shape)
    numbers = np.arange(1, len(logits) + 1).reshape(-1, *(1,) * (logits.ndim - 1))
    return truth * numbers, (logits > 0) * numbers, chance.max(0)


def _placed(like: Picture, values: Array, box: Box) -> Picture:
    """Return values (Y', X') as grey, at their place in a picture that is dark elsewhere."""
    result = like * np.float32(0.25)
    result[box.slices] = values[..., None]
    return result


def _errors(picture: Picture, truth: Array, answer: Array, valid: Array, box: Box) -> Picture:
    """Colour what is missed, and what is added or of another class, where voxels count."""
    part = picture[box.slices]
    for one, other, counts in zip(truth, answer, valid, strict=True):
        part[(one != other) & (other == 0) & counts] = _MISSED
        part[(one != other) & (other != 0) & counts] = _ADDED
    return picture


@contextmanager
def watch(
    folder: Path, facts: dict[str, Any], spec: UNetSpec, validation: PatchStore | None, normalise: Normalise,
    on_event: Callable[[dict[str, Any]], None], *, tensorboard: bool,
) -> Iterator[tuple[Callable[[dict[str, Any]], None], ValidationPreviews | None]]:  # fmt: skip
    """Give what the loop tells its events to, and what draws after each validation.

    Parameters
    ----------
    folder : pathlib.Path
        The run's.
    facts : dict
        The dataset's record.
    spec : UNetSpec
    validation : PatchStore or None
    normalise : callable
        Of the validation patches.
    on_event : callable
        Is told all events.
    tensorboard : bool
        Write for TensorBoard too, into ``RUN/tensorboard``.
    """
    from unetflow.nn.board import Board

    board = Board(folder / "tensorboard", on_event) if tensorboard else None
    look = None
    if validation is not None:
        size = facts["voxel_size"]
        look = ValidationPreviews(
            validation, normalise, spec.head, spec.margin, folder / "previews", size[-2] / size[-1], board
        )
    try:
        yield board or on_event, look
    finally:
        if board is not None:
            board.close()
