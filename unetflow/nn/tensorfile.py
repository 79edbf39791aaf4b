"""Tensors and one JSON record in one file: safetensors, whole or not there at all.

Nothing in such a file is code: reading one that a stranger made runs nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from unetflow.failpoints import fail_point

_ENTRY = "unetflow"


class DamagedFileError(ValueError):
    """Say that a file is no tensor file of ours, or no longer a whole one."""


def write_tensors(path: str | Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    """Write tensors and their record, and put the file in place only once it is safe.

    Parameters
    ----------
    path : str or Path
        Its folder is made where it is missing.
    tensors : mapping of str to Tensor
        Any device and layout; stored contiguously.
    record : mapping
        Plain JSON types. Kept in the metadata entry ``unetflow`` with a checksum of it all.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A clone of its own for each: safetensors refuses tensors that share memory.
    stored = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
              for name, tensor in tensors.items()}  # fmt: skip
    plain = json.loads(json.dumps(record))
    entry = json.dumps({**plain, "sha256": _checksum(stored, plain)}, sort_keys=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")  # ranks may save at once
    try:
        fail_point("before-tensors")
        _save(stored, temporary, entry)
        fail_point("half-tensors")
        _sync(temporary)
        fail_point("before-tensors-rename")
        os.replace(temporary, path)
        fail_point("after-tensors-rename")
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _save(tensors: dict[str, Tensor], path: Path, entry: str) -> None:
    try:
        safetensors.torch.save_file(tensors, path, {_ENTRY: entry})
    except SafetensorError as cause:
        number = re.search(r"os error (\d+)", str(cause))  # a full disk is no error of the format
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from cause


def read_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors (on the CPU) and the record of a file.

    Raises
    ------
    DamagedFileError
        If the file is of another kind, cut short, or its checksum does not fit.
    OSError
        If it cannot be read.
    """
    try:
        with safe_open(str(path), framework="pt") as file:
            entry = (file.metadata() or {}).get(_ENTRY)
            # Copies: the file may be replaced while its tensors are in use.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except SafetensorError as cause:
        raise DamagedFileError(f"{path} is no whole safetensors file ({cause})") from None
    record = _parse(path, entry)
    if record.pop("sha256", None) != _checksum(tensors, record):
        raise DamagedFileError(f"{path} does not fit its checksum")
    return tensors, record


def _parse(path: str | Path, entry: str | None) -> dict[str, Any]:
    try:
        record = json.loads(entry or "")
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DamagedFileError(f"{path} has no record of unetflow in it")
    return record


def _checksum(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
