"""Pictures that Pillow reads: PNG, JPEG, BMP.

How a mode becomes voxels:

========================  =============================================================
grey (L, I;16, I, F)      ``yx``, the type kept
1 bit                     ``yx`` uint8, 0 and 1
grey and alpha            ``yx``: the alpha channel is no data
RGB, RGBA, CMYK, YCbCr    ``yxc`` uint8, three channels; alpha is no data
palette                   labels: the indices, ``yx``; images: the colours, ``yxc``
16-bit colour PNG         refused: Pillow would drop half of the bits
========================  =============================================================
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from unetflow.errors import InputError
from unetflow.formats.source import Array, Source
from unetflow.geometry import Box

PICTURES = (".png", ".jpg", ".jpeg", ".bmp")

_GREY = {
    "1": "uint8",
    "L": "uint8",
    "LA": "uint8",
    "I;16": "uint16",
    "I;16B": "uint16",
    "I;16L": "uint16",
    "I;16N": "uint16",
    "I": "int32",
    "F": "float32",
}
_COLOUR = ("RGB", "RGBA", "CMYK", "YCbCr")
_PALETTE = ("P", "PA")


@dataclass(frozen=True)
class Picture(Source):
    """One picture; decoded as a whole, because its compression allows no less."""

    as_labels: bool = False

    def read(self, box: Box) -> Array:
        """Return the voxels of a box over all stored axes, native-endian."""
        with _opened(self.path) as image:
            if image.mode == "LA":
                image = image.getchannel(0)
            elif image.mode in _PALETTE and self.as_labels:
                image = image if image.mode == "P" else image.getchannel(0)
            elif image.mode not in _GREY:
                image = image.convert("RGB")
            array = np.asarray(image)
        if array.shape != self.shape:
            raise ValueError(f"{self.path} was {self.shape} when planned, and is {array.shape} now")
        return np.ascontiguousarray(array[box.slices], dtype=self.dtype)


def open_picture(path: str, as_labels: bool = False) -> Picture:
    """Look at a picture's header.

    Raises
    ------
    InputError
        If Pillow cannot read it or would lose bits.
    """
    try:
        with _opened(path) as image:
            mode, (width, height) = image.mode, image.size
    except (UnidentifiedImageError, OSError, SyntaxError) as cause:
        raise InputError(f"{path} must be a picture that Pillow reads: {cause}") from None
    if path.lower().endswith(".png") and _loses_bits(path):
        raise InputError(f"a colour PNG must have 8 bits a channel, got 16 in {path}; save it as TIFF")
    if mode in _GREY or (mode in _PALETTE and as_labels):
        return Picture(path, (height, width), _GREY.get(mode, "uint8"), "yx", None, True, as_labels=as_labels)
    if mode in (*_COLOUR, *_PALETTE):
        return Picture(path, (height, width, 3), "uint8", "yxc", None, True, as_labels=as_labels)
    raise InputError(
        f"a picture's mode must be one of {', '.join((*_GREY, *_COLOUR, *_PALETTE))}, got {mode} "
        f"in {path}; save it as grey or RGB"
    )


def _loses_bits(path: str) -> bool:
    """Say whether a PNG header (bytes 24 and 25) announces 16 bits with colour or alpha."""
    header = Path(path).open("rb").read(26)  # noqa: SIM115
    return header[24] == 16 and header[25] != 0


@contextmanager
def _opened(path: str) -> Iterator[Image.Image]:
    """Open a picture of any size: Pillow's limit is meant for pictures of strangers."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with Image.open(path, formats=("PNG", "JPEG", "BMP")) as image:
            yield image
    finally:
        Image.MAX_IMAGE_PIXELS = limit
