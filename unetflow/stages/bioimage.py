"""A network in the words of the bioimage.io format, model 0.5: axes, sizes, normalisation, files.

References
----------
.. [1] Ouyang et al.: BioImage Model Zoo: A Community-Driven Resource for Accessible Deep Learning in BioImage
   Analysis. bioRxiv 2022.06.07.495102. The format: github.com/bioimage-io/spec-bioimage-io.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from unetflow.errors import InputError
from unetflow.geometry import Shape

if TYPE_CHECKING:
    from unetflow.architecture import UNetSpec

INPUT, OUTPUT, WEIGHTS, PACKAGE = "test_input.npy", "test_output.npy", "weights.pt", "package.zip"
_EPS = 1e-6  # what the format adds to a range or a deviation before it divides by it
_DTYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "float32", "float64")
_CITE = {
    "text": "Ronneberger, Fischer, Brox: U-Net: Convolutional Networks for Biomedical Image Segmentation. MICCAI 2015",
    "doi": "10.1007/978-3-319-24574-4_28",
}


def describe(spec: UNetSpec, record: dict[str, Any]) -> dict[str, Any]:
    """Return what the format asks to be told of a network and its test tensors.

    Parameters
    ----------
    spec : UNetSpec
    record : dict
        The model file's.
    """
    import torch

    names = "zyx"[-spec.dims :]
    sizes = zip(smallest_input(spec), spec.total_stride, spec.margin, halo_of(spec), _voxels(spec, record), strict=True)
    inputs: list[dict[str, Any]] = []
    outputs: list[dict[str, Any]] = []
    for axis, (smallest, step, margin, halo, voxel) in zip(names, sizes, strict=True):
        place = {"type": "space", "id": axis, "unit": "micrometer", "scale": voxel}
        inputs.append({**place, "size": {"min": smallest, "step": step}})
        size = {"tensor_id": "raw", "axis_id": axis, "offset": -2 * margin}
        outputs.append({**place, "size": size, **({"halo": halo} if halo else {})})
    return {
        "type": "model",
        "format_version": "0.5.14",
        "cite": [_CITE],
        "tags": ["unet", "segmentation", f"{spec.dims}d", "pytorch", "unetflow"],
        "inputs": [
            {
                "id": "raw",
                "axes": [{"type": "batch"}, _channels([f"channel {c}" for c in range(spec.in_channels)]), *inputs],
                "test_tensor": {"source": INPUT},
                "data": {"type": dtype_of(record)},
                "preprocessing": _preprocessing(names, record),
            }
        ],
        "outputs": [
            {
                "id": "probabilities",
                "axes": [{"type": "batch"}, _channels(_classes(spec)), *outputs],
                "test_tensor": {"source": OUTPUT},
                "data": {"type": "float32", "range": [0.0, 1.0]},
            }
        ],
        "weights": {"torchscript": {"source": WEIGHTS, "pytorch_version": torch.__version__.partition("+")[0]}},
    }


def pack(folder: Path, values: dict[str, Any]) -> None:
    """Check a description against the format, and pack it with its files into `PACKAGE`.

    Raises
    ------
    InputError
        If `bioimageio.spec` is not installed, or refuses the description.
    """
    try:
        from bioimageio.spec import InvalidDescr, ValidationContext, build_description, save_bioimageio_package
    except ImportError:
        raise InputError(
            "an export needs bioimageio.spec, which is not installed; pip install 'unetflow[bioimageio]'"
        ) from None
    with ValidationContext(root=folder, log_warnings=False):
        made = build_description(values)
        if isinstance(made, InvalidDescr):
            said = "; ".join(
                f"{'.'.join(map(str, error.loc))}: {error.msg}"
                for detail in made.validation_summary.details
                for error in detail.errors
            )
            raise InputError(f"the bioimage.io format refuses the description: {said}")
        save_bioimageio_package(made, output_path=folder / PACKAGE)


def smallest_input(spec: UNetSpec) -> Shape:
    """Return the smallest input whose output is more than its halo.

    Examples
    --------
    >>> from unetflow.architecture import UNetSpec
    >>> smallest_input(UNetSpec.build(depth=2)), smallest_input(UNetSpec.build(depth=2, padding="same"))
    ((44, 44), (52, 52))
    """
    outside = zip(spec.margin, halo_of(spec), strict=True)
    return spec.round_up([2 * (margin + halo) + 1 for margin, halo in outside])


def halo_of(spec: UNetSpec) -> Shape:
    """Return how many voxels at each end of the output depend on where the image was cut."""
    return tuple(max(before, after) - m for before, after, m in zip(*spec.halo, spec.margin, strict=True))


def dtype_of(record: dict[str, Any]) -> str:
    """Return the dtype of the training data, or float32 where the format has no such."""
    return str(record["dtype"]) if record["dtype"] in _DTYPES else "float32"


def normalise_as_told(image: npt.NDArray[Any], record: dict[str, Any]) -> npt.NDArray[np.float32]:
    """Normalise an image (B, C, [Z, ]Y, X) by the formulas that the format gives to what `describe` tells."""
    spatial = tuple(range(2, image.ndim))
    result = image.astype(np.float32)
    if record["normalise"] == "none":
        return result
    if record["normalise_per"] == "training":
        gain, offset = (np.reshape(v, (-1, *[1] * len(spatial))) for v in _gain_and_offset(record))
        result = result * gain + offset
    elif record["normalise"] == "zscore":
        mean, deviation = result.mean(spatial, keepdims=True), result.std(spatial, keepdims=True)
        result = (result - mean) / (deviation + _EPS)
    else:
        low, high = np.percentile(result, (1, 99), axis=spatial, keepdims=True)
        result = (result - low) / (high - low + _EPS) * 2 - 1
    return np.asarray(result, np.float32)


def _preprocessing(names: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    # Last too: the steps between may compute in float64, which the network does not take.
    as_float = {"id": "ensure_dtype", "kwargs": {"dtype": "float32"}}
    return [as_float, *_normalisation(names, record), as_float]


def _normalisation(names: str, record: dict[str, Any]) -> list[dict[str, Any]]:
    # The default of eps is not written: YAML 1.1 reads "1e-06" as a word.
    if record["normalise"] == "none":
        return []
    if record["normalise_per"] == "training":
        gain, offset = _gain_and_offset(record)
        each: dict[str, Any] = {"gain": gain, "offset": offset, "axis": "channel"}
        return [{"id": "scale_linear", "kwargs": each if gain[1:] else {"gain": gain[0], "offset": offset[0]}}]
    if record["normalise"] == "zscore":
        return [{"id": "zero_mean_unit_variance", "kwargs": {"axes": list(names)}}]
    ends = {"min_percentile": 1.0, "max_percentile": 99.0}
    return [
        {"id": "scale_range", "kwargs": {"axes": list(names), **ends}},
        {"id": "scale_linear", "kwargs": {"gain": 2.0, "offset": -1.0}},
    ]


def _gain_and_offset(record: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return what to multiply each channel by, and then to add."""
    pairs = list(zip(record["normalisation"]["offset"], record["normalisation"]["scale"], strict=True))
    return [1 / scale for _, scale in pairs], [-offset / scale for offset, scale in pairs]


def _channels(names: list[str]) -> dict[str, Any]:
    return {"type": "channel", "channel_names": names}


def _classes(spec: UNetSpec) -> list[str]:
    if spec.out_channels == 1:
        return ["foreground"]
    return [f"class {number}" for number in range(spec.out_channels)]


def _voxels(spec: UNetSpec, record: dict[str, Any]) -> list[float]:
    return [float(length) for length in record["voxel_size"][-spec.dims :]]
