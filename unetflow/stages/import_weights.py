"""Weights from plain PyTorch: a model file of ours from somebody else's state_dict of the same network."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.settings import Settings
from unetflow.stages.network import model_spec
from unetflow.stages.work import versions

if TYPE_CHECKING:
    from torch import Tensor

    from unetflow.nn.unet import UNet

Floats = npt.NDArray[np.float32]
Example = tuple[Floats, Floats]
_NEAR = 1e-3  # how far logits may differ, relative to the largest: other kernels round otherwise


@dataclass(frozen=True)
class ImportedWeights:
    """What was imported.

    Parameters
    ----------
    path : pathlib.Path
        The model file.
    layers : dict of str to str
        Their layer for each of ours, in the order in which an image meets them.
    """

    path: Path
    layers: dict[str, str]


def import_weights(
    weights: str | os.PathLike[str],
    target: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    in_channels: int = 1,
    n_classes: int = 2,
    axes: str | None = None,
    voxel_size: Sequence[float] | None = None,
    kind: str = "classes",
    order: Sequence[str] | None = None,
    skip_first: bool = False,
    example: Example | None = None,
    overwrite: bool = False,
) -> ImportedWeights:
    """Write a model file with the weights of a network that plain PyTorch trained.

    Layers are told apart by their shapes and, where shapes are equal, by their order. No code of the
    file is run: safetensors, or a ``.pt`` or ``.pth`` that holds nothing but tensors.

    Parameters
    ----------
    weights : path
    target : path
        The file to write, ``NAME.safetensors``.
    settings : Settings, optional
        ``[model]`` says what their network is, ``[prepare] normalise`` how its images were normalised.
    in_channels, n_classes : int
    axes : str, optional
        Spatial axes of the volumes, by default ``yx`` or ``zyx``.
    voxel_size : sequence of float, optional
        Micrometres for each of ``axes``; absent: 1.
    kind : {"classes", "instances", "multilabel"}
        Of the labels it learnt from.
    order : sequence of str, optional
        The names of their tensors as ``model.state_dict()`` lists them. Safetensors files need it, since they sort.
    skip_first : bool
        Their network joins ``[skip, up]``, as many do; ours joins ``[up, skip]``.
    example : pair of ndarray, optional
        A normalised image ``(B, C, [Z, ]Y, X)`` and the logits ``(B, K, [Z, ]Y, X)`` that their network gives in
        inference. Weights that give others are refused.
    overwrite : bool

    Returns
    -------
    ImportedWeights

    Raises
    ------
    InputError
        If the file needs code, the networks differ, or the example comes out otherwise.
    """
    from unetflow.nn.checkpoint import export_model
    from unetflow.nn.foreign import map_weights, read_weights
    from unetflow.nn.unet import UNet

    settings, path = settings or Settings(), Path(target)
    if path.suffix != ".safetensors":
        raise InputError(f"a model file is a .safetensors, got {path}; name it {path.stem}.safetensors")
    if path.exists() and not overwrite:
        raise InputError(f"the target of an import must not exist yet, got {path}; name another, or give overwrite")
    if settings.prepare.normalise_per == "training" and settings.prepare.normalise != "none":
        raise InputError(
            'statistics of foreign training data are not known, got normalise_per = "training"; set "volume", or none'
        )
    spec = model_spec(settings, in_channels, n_classes, is_multilabel=kind == "multilabel")
    names = axes or "zyx"[-spec.dims :]
    lengths = tuple(voxel_size or (1.0,) * len(names))
    if len(lengths) != len(names) or len(names) < spec.dims:
        raise InputError(f"a voxel has a length along each of {names}, got {list(lengths)}; give axes and voxel_size")
    network = UNet(spec)
    state, is_ordered = read_weights(Path(weights))
    is_ours = _shapes(state) == _shapes(network.state_dict())
    if order is not None:
        state = _sorted_by(order, state)
    elif not (is_ordered or is_ours):
        raise InputError(
            f"safetensors files sort their names, and layers of equal shapes are told apart by order, got {weights} "
            "without one; give order=list(model.state_dict())"
        )
    layers = {name: name for name in state}
    if not is_ours:
        state, layers = map_weights(spec, state, skip_first=skip_first)
    network.load_state_dict(state)
    if example is not None:
        _check_example(network, *example)
    record = {
        "kind": kind, "n_classes": n_classes, "in_channels": in_channels, "axes": names, "dims": spec.dims,
        "voxel_size": list(lengths), "dtype": "float32", "class_map": None, "ignore": [],
        "normalise": settings.prepare.normalise, "normalise_per": settings.prepare.normalise_per,
        "normalisation": {"offset": [0.0] * in_channels, "scale": [1.0] * in_channels},
        "settings": settings.model_dump(mode="json", include={"prepare", "model", "train"}),
        "imported_from": Path(weights).name, "versions": versions(),
    }  # fmt: skip
    export_model(path, network, record)
    return ImportedWeights(path, layers)


def _shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def _sorted_by(order: Sequence[str], state: dict[str, Tensor]) -> dict[str, Tensor]:
    unlike = sorted(set(order) ^ set(state))
    if unlike:
        raise InputError(
            f"order must name every tensor of the file once, got a difference in {', '.join(unlike[:4])}; "
            "give list(model.state_dict())"
        )
    return {name: state[name] for name in order}


def _check_example(network: UNet, image: Floats, logits: Floats) -> None:
    import torch

    with torch.no_grad():
        found = network.eval()(torch.from_numpy(np.ascontiguousarray(image, np.float32))).numpy()
    far = np.abs(found - logits).max() if found.shape == logits.shape else np.inf
    if not far <= _NEAR * max(1.0, float(np.abs(logits).max())):
        raise InputError(
            f"the weights must give the example's logits {logits.shape}, got {found.shape}, {far:.3g} apart; "
            "try skip_first, look at the layers' order, or at padding and upsample in [model]"
        )
