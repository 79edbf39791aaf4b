"""Weights of a U-Net that somebody else wrote in PyTorch, brought onto ours by order and shape.

::

    theirs  inc.0 (64,1,3,3)  inc.2 (64,64,3,3)  down.0 ...  up1 (1024,512,2,2) ...  outc (2,64,1,1)
              |                 |                  |           |                       |
    ours    contract.0.0      contract.0.2       contract.1  up.3.0                  head         as they are called
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unetflow.architecture import Shape, UNetSpec
from unetflow.errors import InputError
from unetflow.nn.unet import UNet

State = dict[str, Tensor]
Layers = dict[str, State]
_COUNTER = "num_batches_tracked"


def read_weights(path: str | Path) -> tuple[State, bool]:
    """Read the tensors of a safetensors file, or of a ``.pt`` or ``.pth`` that holds nothing else.

    Returns
    -------
    state : dict of str to Tensor
    is_ordered : bool
        Whether the names stand as the network defines them; safetensors sorts them.

    Raises
    ------
    InputError
        If the file is not there, is damaged, or needs code to run while it is read.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weights are a .safetensors, .pt or .pth file, got none at {path}; name another")
    if path.suffix == ".safetensors":
        try:
            with safe_open(str(path), framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, False  # noqa: SIM118
        except SafetensorError as cause:
            raise InputError(f"weights must be a whole safetensors file, got {path}: {cause}; copy it again") from None
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as cause:
        said = (str(cause).strip() or "it is empty").splitlines()[0]
        raise InputError(
            f"weights are read without running code, but {path} needs it, or is damaged ({said}); where it was made, "
            "write its tensors alone: torch.save(model.state_dict(), 'weights.pt')"
        ) from None
    return _state_in(found, path), True


def _state_in(found: Any, path: Path) -> State:
    """Return the tensors themselves, or those under the one name that holds tensors."""
    if isinstance(found, Mapping):
        if found and all(isinstance(value, Tensor) for value in found.values()):
            return dict(found)
        inner = [part for part in found.values() if isinstance(part, Mapping)]
        states = [part for part in inner if part and all(map(torch.is_tensor, part.values()))]
        if len(states) == 1:
            return dict(states[0])
    raise InputError(
        f"weights are tensors by name, or under one name such as 'state_dict', got other things in {path}; "
        "write them alone: torch.save(model.state_dict(), 'weights.pt')"
    )


def map_weights(spec: UNetSpec, theirs: State, *, skip_first: bool = False) -> tuple[State, dict[str, str]]:
    """Give each layer of our network the first unused one of theirs that has its shapes.

    Parameters
    ----------
    spec : UNetSpec
    theirs : dict of str to Tensor
        In the order in which their network defines its layers, the contracting path first.
    skip_first : bool
        Their network joins ``[skip, up]``; ours ``[up, skip]``.

    Returns
    -------
    state : dict of str to Tensor
        For our network.
    names : dict of str to str
        Their layer for each of ours, as called.

    Raises
    ------
    InputError
        If a layer finds none, or one of theirs is left; both are named with their shapes.
    """
    own = UNet(spec).state_dict()
    ours, left = _layers(own), _layers(theirs)
    state: State = {}
    names: dict[str, str] = {}
    missing = []
    for name in _as_called(spec, ours):
        wanted = _shapes(ours[name])
        found = next((other for other, tensors in left.items() if _shapes(tensors) == wanted), None)
        if found is None:
            missing.append(name)
            continue
        names[name] = found
        tensors = left.pop(found)
        if skip_first and spec.skip == "concat" and name.startswith("join.") and name.endswith(".0"):
            tensors["weight"] = torch.cat(tensors["weight"].chunk(2, 1)[::-1], 1)
        state |= {f"{name}.{leaf}": tensor.to(own[f"{name}.{leaf}"].dtype) for leaf, tensor in tensors.items()}
    if missing or left:
        raise InputError(
            "the weights must be those of the same network, got "
            + "; ".join(part for part in (_told("no", missing, ours), _told("too much:", left, left)) if part)
            + "; set [model] to their network's numbers"
        )
    return {**own, **state}, names


def _told(word: str, names: Iterable[str], layers: Layers) -> str:
    listed = [f"{name} {' '.join(str(list(shape)) for _, shape in sorted(_shapes(layers[name]), reverse=True))}"
              for name in names]  # fmt: skip
    more = f" and {len(listed) - 4} more" if len(listed) > 4 else ""
    return f"{word} {', '.join(listed[:4])}{more}" if listed else ""


def _layers(state: State) -> Layers:
    """Gather the tensors of each layer under the layer's name."""
    layers: Layers = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        layers.setdefault(layer, {})[leaf] = tensor
    return layers


def _shapes(tensors: State) -> frozenset[tuple[str, Shape]]:
    # Batch norms of old files do not count their batches, and nothing but training asks.
    return frozenset((leaf, tuple(tensor.shape)) for leaf, tensor in tensors.items() if leaf != _COUNTER)


def _as_called(spec: UNetSpec, layers: Layers) -> list[str]:
    """Name our layers in the order in which an image meets them."""
    places = [f"contract.{level}." for level in range(spec.depth + 1)]
    for level in reversed(range(spec.depth)):
        places += [f"up.{level}.", f"join.{level}."]
    places += ["extra.", "head"]
    return [name for place in places for name in layers if name.startswith(place)]
