"""Draw the figures of docs/mathematics.md into a folder, by the package's own functions.

python docs/make/figures.py docs/figures
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

from unetflow.architecture import UNetSpec
from unetflow.geometry import Box
from unetflow.numerics.elastic import displacement
from unetflow.numerics.targets import instance_target
from unetflow.numerics.tissue import tissue
from unetflow.numerics.weights import border_cut, border_weight, class_weights

# The same bytes on every run; text stays text, in the reader's own font.
plt.rcParams.update({
    "svg.hashsalt": "unetflow", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9,
    "axes.spines.top": False, "axes.spines.right": False,
})  # fmt: skip
W0, SIGMA, TOLERANCE = 10.0, 5.0, 1e-5
BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#999999"


def weights() -> plt.Figure:
    """Draw labels of a piece of tissue, its target and its weights."""
    shape = (96, 144)
    raw, ids = tissue(Box.of_shape(shape), shape, seed=4, cell_size=26.0, gap=0.3)
    target = instance_target(ids, (True, True))
    balance = class_weights(np.bincount(target.ravel(), minlength=2))[target]
    border = np.where(target == 0, border_weight(ids.astype(np.int32), (1.0, 1.0), W0, SIGMA, TOLERANCE), 0)
    figure, axes = plt.subplots(1, 4, figsize=(9, 1.9), layout="constrained")
    for axis, image, title, colours in zip(
        axes, (raw, target, balance, balance + border),
        ("raw", "target: objects less their seams", "w_c: classes balanced", "w = w_c + border"),
        ("gray", "gray", "viridis", "viridis"), strict=True,
    ):  # fmt: skip
        shown = axis.imshow(image, cmap=colours, interpolation="nearest")
        axis.set_title(title, fontsize=8)
        axis.set_axis_off()
        if colours == "viridis":
            figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure


def border() -> plt.Figure:
    """Draw the border weight over d1 + d2, and where it ends."""
    cut = border_cut(W0, SIGMA, TOLERANCE)
    reach = np.linspace(0, 32, 400)
    figure, axis = plt.subplots(figsize=(5.5, 2.4), layout="constrained")
    for sigma, colour in ((2.5, GREY), (SIGMA, BLUE)):
        axis.semilogy(reach, W0 * np.exp(-(reach**2) / (2 * sigma**2)), color=colour, label=f"sigma = {sigma:g}")
    axis.axhline(TOLERANCE, color=ORANGE, linewidth=0.8)
    axis.axvline(cut, color=ORANGE, linewidth=0.8)
    axis.annotate(f"zero by definition beyond {cut:.1f}", (cut, 2.0), (cut - 0.4, 2.0), ha="right", color=ORANGE)
    axis.set(xlabel="d1 + d2 in voxels of the finest axis", ylabel="border weight", ylim=(1e-7, 30))
    axis.legend(frameon=False, loc="lower left")
    return figure


def halo() -> plt.Figure:
    """Draw tiles of a small network along one axis: what each keeps and what it reads."""
    spec = UNetSpec.build(dims=2, depth=2, base_channels=4, padding="same")
    before, after, stride = spec.halo[0][0], spec.halo[1][0], spec.total_stride[0]
    length, tile = 144, 36
    figure, axis = plt.subplots(figsize=(8, 2.3), layout="constrained")
    axis.add_patch(Rectangle((0, 4.2), length, 0.5, color=GREY))
    axis.text(length / 2, 4.45, "volume", ha="center", va="center", color="white")
    for row, start in enumerate(range(0, length, tile)):
        y = 3.2 - row
        axis.add_patch(Rectangle((start - before, y), before + tile + after, 0.6, color=BLUE, alpha=0.25, linewidth=0))
        axis.add_patch(Rectangle((start, y), tile, 0.6, color=BLUE))
        axis.text(start + tile / 2, y + 0.3, "kept", ha="center", va="center", color="white")
    axis.text(-before, 3.9, "mirrored", color=ORANGE, fontsize=8)
    for edge in (0, length):
        axis.axvline(edge, color=ORANGE, linewidth=0.8)
    axis.set(xlim=(-before - 4, length + after + 4), ylim=(-0.2, 4.9), yticks=[])
    axis.set_xticks(range(0, length + 1, tile))
    axis.set_xlabel(f"voxels; depth 2: stride {stride}, halo {before} before and {after} after each tile")
    axis.spines["left"].set_visible(False)
    return figure


def depth() -> plt.Figure:
    """Draw how much a network reads for each voxel that it keeps."""
    kept = 2 ** np.arange(5, 12)
    figure, axis = plt.subplots(figsize=(5.5, 2.6), layout="constrained")
    for n, colour in ((2, GREY), (3, BLUE), (4, ORANGE)):
        spec = UNetSpec.build(dims=2, depth=n, padding="same")
        read = np.array([np.prod(spec.tile_input((k, k))) for k in kept])
        axis.loglog(kept, read / kept**2, color=colour, marker=".", label=f"depth {n}: halo {spec.halo[0][0]}")
    axis.set_xscale("log", base=2)
    axis.set_xticks(kept, [str(k) for k in kept])
    axis.set_yticks([1, 2, 5, 10, 50], ["1", "2", "5", "10", "50"])
    axis.minorticks_off()
    axis.set(xlabel="kept voxels along each of two axes", ylabel="read / kept")
    axis.legend(frameon=False)
    return figure


def elastic() -> plt.Figure:
    """Draw fields of growing deviation; the last one was scaled down so that it does not fold."""
    shape = (300, 300)
    figure, axes = plt.subplots(1, 3, figsize=(7.5, 2.7), layout="constrained")
    for axis, sigma in zip(axes, (5.0, 10.0, 60.0), strict=True):
        field = displacement(3, shape, sigma=(sigma, sigma))
        moved = np.indices(shape) + field.values()
        for lines in (moved[:, ::25, ::6], np.swapaxes(moved, 1, 2)[:, ::25, ::6]):
            axis.plot(lines[1].T, lines[0].T, color=BLUE, linewidth=0.6)
        scaled = f", scaled by {field.factor:.2f}" if field.was_scaled else ""
        axis.set_title(f"elastic_sigma = {sigma:g}{scaled}", fontsize=8)
        axis.set_aspect("equal")
        axis.invert_yaxis()
        axis.set_axis_off()
    return figure


FIGURES = {"weights": weights, "border": border, "halo": halo, "depth": depth, "elastic": elastic}


def main(folder: str) -> None:
    """Write all figures."""
    for name, draw in FIGURES.items():
        figure = draw()
        figure.savefig(Path(folder, f"{name}.svg"), metadata={"Date": None, "Creator": None})
        plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1])
