"""A model for other programs: one file in the bioimage.io format, with tensors that prove it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import Shape

if TYPE_CHECKING:
    from unetflow.architecture import UNetSpec

_MOST_OUTPUT = {2: 64, 3: 16}  # voxels along an axis of the test tensors, where the network gives so few


@dataclass(frozen=True)
class ExportedModel:
    """What was exported.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    bytes : int
        Its size.
    input_shape, output_shape : tuple of int
        Of the test tensors, ``(B, C, [Z, ]Y, X)`` and ``(B, K, [Z, ]Y, X)``.
    """

    path: Path
    bytes: int
    input_shape: Shape
    output_shape: Shape


def export_model(
    model: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    name: str | None = None,
    description: str | None = None,
    authors: Sequence[str] = (),
    license: str | None = None,
    overwrite: bool = False,
) -> ExportedModel:
    """Write a model as a bioimage.io package, with its weights as TorchScript.

    Parameters
    ----------
    model : path
        A model file or a run folder.
    target : path
        The file to write, ``NAME.zip``.
    name, description : str, optional
        Absent: made from the kind of labels and the network.
    authors : sequence of str
        Names.
    license : str, optional
        Of the weights, an SPDX name such as ``CC-BY-4.0``; model zoos ask for one.
    overwrite : bool

    Returns
    -------
    ExportedModel

    Raises
    ------
    InputError
        If there is no such model, the target exists, or `bioimageio.spec` is not installed or refuses an argument.

    Notes
    -----
    With ``normalise_per = "volume"`` the package asks for the percentiles of the image that it is given. A program
    that hands it tile after tile has to take those of the whole image.
    """
    from unetflow.nn.checkpoint import load_model
    from unetflow.nn.predict import Predictor
    from unetflow.nn.torchscript import save_torchscript
    from unetflow.stages.bioimage import INPUT, OUTPUT, PACKAGE, WEIGHTS, describe, normalise_as_told, pack

    path = Path(target)
    if path.suffix != ".zip":
        raise InputError(f"an exported model is a .zip, got {path}; name it {path.name}.zip")
    if path.exists() and not overwrite:
        raise InputError(f"the target of an export must not exist yet, got {path}; name another, or give overwrite")
    if not path.absolute().parent.is_dir():
        raise InputError(f"the folder of an exported model must exist, got {path.parent}; make it first")
    network, record = load_model(Path(model))
    spec = network.spec
    image = _test_image(spec, record)
    normalised = normalise_as_told(image, record)
    probabilities = Predictor(network, "cpu", "float32").probabilities_batch(normalised)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.absolute().parent) as folder:
        place = Path(folder)
        np.save(place / INPUT, image)
        np.save(place / OUTPUT, probabilities)
        save_torchscript(network, place / WEIGHTS, image.shape[2:])
        told = {
            "name": name or f"unetflow {record['kind']} {spec.dims}D",
            "description": description or f"A {spec.dims}-D U-Net of {spec.depth} poolings for {record['kind']}.",
            "authors": [{"name": author} for author in authors],
            **({} if license is None else {"license": license}),
        }
        pack(place, {**told, **describe(spec, record)})
        os.replace(place / PACKAGE, path)
    return ExportedModel(path, path.stat().st_size, image.shape, probabilities.shape)


def _test_image(spec: UNetSpec, record: dict[str, Any]) -> npt.NDArray[Any]:
    """Draw an image of the training data's dtype, with an output of few voxels."""
    from unetflow.stages.bioimage import dtype_of, smallest_input

    shape = smallest_input(spec)
    for axis, step in enumerate(spec.total_stride):
        while spec.output_shape(shape)[axis] + step <= _MOST_OUTPUT[spec.dims]:
            shape = (*shape[:axis], shape[axis] + step, *shape[axis + 1 :])
    rng = np.random.default_rng(0)
    dtype = np.dtype(dtype_of(record))
    whole = (1, spec.in_channels, *shape)
    if dtype.kind == "f":
        return rng.normal(size=whole).astype(dtype)
    return rng.integers(0, 128 if dtype == np.int8 else 256, whole).astype(dtype)
