"""Panels of one plane side by side, as one PNG: pictures, truth drawn over them, weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.geometry import Box, Shape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDE, _LARGEST = 512, 768  # pixels of a panel's longer side: small planes are enlarged, large ones reduced
_GAP, _TITLE, _BAR = 10, 52, 76
_DPI = 100
_GRID_CELLS = 8  # along the longer side of a patch
_IGNORED = "#3d5a66"  # of voxels that weigh 0
_LINE, _OUTLINE = "#25e0ff", "#ffe14d"
# Of classes 1, 2, ...: bright, and far from each other.
_CLASS_COLOURS = ("#ff9d2e", "#28c8ff", "#7bd63b", "#ff5fb0", "#ffe14d", "#a98bff", "#ff5b4a", "#3be0c0")

Array = npt.NDArray[Any]
Picture = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Panel:
    title: str
    picture: Array
    box: Box
    lines: Array | None = None
    frame: Box | None = None
    is_weight: bool = False


@dataclass
class Panels:
    """Panels that show one plane.

    Parameters
    ----------
    title : str
        Stands above all of them.
    shape : tuple of int
        Of the plane, (Y, X).
    aspect : float
        Height of a voxel over its width.
    """

    title: str
    shape: Shape
    aspect: float = 1.0
    panels: list[_Panel] = field(default_factory=list)

    def add(self, title: str, picture: Picture, *, lines: Array | None = None, frame: Box | None = None) -> None:
        """Add a picture.

        Parameters
        ----------
        picture : ndarray of float, shape (Y, X, 3)
        lines : ndarray of float, shape (2, Y, X), optional
            Where each pixel comes from, in pixels along y and x: lines that were straight
            there, evenly spaced, are drawn where they are now.
        frame : Box, optional
            A part that is framed.
        """
        self.panels.append(_Panel(title, picture, Box.of_shape(self.shape), lines, frame))

    def add_weight(self, weight: Array, box: Box) -> None:
        """Add weights (Y, X) of a part of the plane, with a bar that tells their numbers."""
        title = f"weight, {weight.min():.3g} to {weight.max():.3g}"
        self.panels.append(_Panel(title, weight, box, None, box, is_weight=True))

    def save(self, path: str) -> None:
        """Write the PNG."""
        from matplotlib.figure import Figure

        width, height = self._panel_pixels()
        whole = (len(self.panels) * (width + _GAP) + _GAP + _BAR, height + _TITLE + _GAP)
        figure = Figure(figsize=(whole[0] / _DPI, whole[1] / _DPI), dpi=_DPI)
        figure.text(_GAP / whole[0], 1 - 18 / whole[1], self.title, fontsize=10, weight="bold", va="center")
        for number, panel in enumerate(self.panels):
            left = _GAP + number * (width + _GAP)
            axes = figure.add_axes((left / whole[0], _GAP / whole[1], width / whole[0], height / whole[1]))
            self._draw(panel, axes)
            if panel.is_weight:
                place = ((left + width + _GAP) / whole[0], _GAP / whole[1], 16 / whole[0], height / whole[1])
                bar = figure.colorbar(axes.images[0], cax=figure.add_axes(place))
                _label_bar(bar)
        # Matplotlib would name its version: equal data shall give equal bytes. More effort saves little of noise.
        figure.savefig(path, dpi=_DPI, metadata={"Software": None}, pil_kwargs={"compress_level": 3})

    def _panel_pixels(self) -> tuple[int, int]:
        """Return width and height of a panel: whole pixels a voxel where they fit."""
        height, width = self.shape[0] * self.aspect, float(self.shape[1])
        longer = max(height, width)
        scale = max(1, round(_WIDE / longer)) if longer <= _LARGEST else _LARGEST / longer
        return max(1, round(width * scale)), max(1, round(height * scale))

    def _draw(self, panel: _Panel, axes: Axes) -> None:
        from matplotlib.patches import Rectangle

        look = _weight_look(panel.picture) if panel.is_weight else {}
        axes.imshow(panel.picture, extent=_extent(panel.box), aspect="auto", **look)
        left, right, bottom, top = _extent(Box.of_shape(self.shape))
        axes.set(xlim=(left, right), ylim=(bottom, top), xticks=[], yticks=[], facecolor="0.85")
        axes.set_title(panel.title, fontsize=9, loc="left", pad=3)
        if panel.lines is not None:
            _draw_lines(axes, panel.lines)
        if panel.frame is not None and panel.frame.shape != self.shape:
            left, right, bottom, top = _extent(panel.frame)
            axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=_LINE, lw=1.2))


def _weight_look(weight: Array) -> dict[str, Any]:
    """Return the colours of weights: logarithmic, for a rare class may weigh far more than the ridges."""
    import matplotlib
    from matplotlib.colors import LogNorm

    known = weight[weight > 0]
    # Not the smallest: beside ignored voxels a deformed map fades towards 0.
    low, high = (float(np.percentile(known, 1)), float(known.max())) if known.size else (1.0, 1.0)
    colours = matplotlib.colormaps["inferno"].with_extremes(bad=_IGNORED)
    return {"cmap": colours, "norm": LogNorm(low * 0.99, max(high, low * 2)), "interpolation": "nearest"}


def _label_bar(bar: Any) -> None:
    """Write plain numbers, about three a decade."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    bar.ax.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
    bar.ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.ax.tick_params(labelsize=9)


def _extent(box: Box) -> tuple[float, float, float, float]:
    (top, left), (bottom, right) = box.start, box.stop
    return left - 0.5, right - 0.5, bottom - 0.5, top - 0.5


def _draw_lines(axes: Axes, positions: Array) -> None:
    """Draw where source lines lie now; the outline of the undeformed patch stands out."""
    step = max(1, round(max(positions.shape[1:]) / _GRID_CELLS))
    for along, last in zip(positions, np.array(positions.shape[1:]) - 1, strict=True):
        low, high = float(along.min()), float(along.max())
        inside = np.arange(np.ceil(low / step) * step, high, step)
        inner = [at for at in inside if low < at < high and at not in (0, last)]
        # No contour runs along the largest value itself, which is where the last line stands.
        edges = [at for at in (1e-3, last - 1e-3) if low <= at <= high]
        for levels, colour, width in ((inner, _LINE, 0.9), (edges, _OUTLINE, 1.6)):
            if levels:
                axes.contour(along, levels=levels, colors=colour, linewidths=width, alpha=0.85)


def grey(image: Array) -> Picture:
    """Return ``(C, Y, X)`` as a picture: 1 % and 99 % become black and white.

    Three channels are colours; of any other number the first is shown.
    """
    shown = image if len(image) == 3 else image[:1]
    values = shown.astype(np.float32)
    low, high = np.percentile(values, (1, 99))
    stretched = np.clip((values - low) / max(float(high - low), 1e-6), 0, 1)
    return np.asarray(np.broadcast_to(stretched, (3, *image.shape[1:])).transpose(1, 2, 0), np.float32)


def overlay(image: Picture, layers: Array, box: Box, *, is_ids: bool) -> Picture:
    """Tint what is above 0 and draw its outline.

    Parameters
    ----------
    image : ndarray of float, shape (Y, X, 3)
    layers : ndarray of int, shape (n, Y', X')
        Objects or classes; more than one layer where they overlap.
    box : Box
        Where the layers lie on the image.
    is_ids : bool
        Objects have colours of their own, classes those of their number.
    """
    result = image.copy()
    part = result[box.slices]
    for layer in layers:
        values, index = np.unique(layer, return_inverse=True)
        colour = _colours(values, is_ids)[index.reshape(layer.shape)]
        is_object = layer > 0
        edge = is_object & is_edge(layer)
        for where, share in ((is_object & ~edge, 0.28), (edge, 0.9)):
            part[where] = (1 - share) * part[where] + share * colour[where]
    return result


def is_edge(layer: Array) -> npt.NDArray[np.bool_]:
    """Say which pixels have a face neighbour of another value."""
    edge = np.zeros(layer.shape, bool)
    for axis in (0, 1):
        lower, upper = (slice(None),) * axis + (slice(1, None),), (slice(None),) * axis + (slice(None, -1),)
        differs = layer[lower] != layer[upper]
        edge[lower] |= differs
        edge[upper] |= differs
    return edge


def _colours(values: Array, is_ids: bool) -> Picture:
    """Return a colour for each value, which depends on that value alone."""
    from matplotlib.colors import hsv_to_rgb, to_rgb

    if not is_ids:
        names = [_CLASS_COLOURS[(int(v) - 1) % len(_CLASS_COLOURS)] for v in values]
        return np.array([to_rgb(name) for name in names], np.float32)
    # Multiples of the golden ratio: ids that follow each other get hues far apart.
    hue = values.astype(np.float64) * 0.6180339887498949 % 1
    return np.asarray(hsv_to_rgb(np.stack([hue, np.full_like(hue, 0.75), np.ones_like(hue)], -1)), np.float32)
