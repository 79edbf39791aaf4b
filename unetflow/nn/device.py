"""Which device computes, and in which arithmetic."""

from __future__ import annotations

from typing import Literal

import torch

from unetflow.errors import InputError

Precision = Literal["float32", "bf16"]


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called ``name``; ``"auto"`` is the GPU where there is one.

    Raises
    ------
    InputError
        If the name is unknown or the GPU is not there.
    """
    has_gpu = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if has_gpu else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"a device must be auto, cpu, cuda or cuda:N, got '{name}'; use auto") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"a device must exist, got '{name}' with {torch.cuda.device_count()} GPUs here; use auto")
    return device


def pick_precision(name: str, device: torch.device) -> Precision:
    """Return the arithmetic; ``"auto"`` is bf16 on a GPU that has it, else float32.

    Processors without bf16 units emulate it, a hundred times slower: float32 there.

    Raises
    ------
    InputError
        If the name is unknown.
    """
    if name == "auto":
        has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if has_bf16 else "float32"
    if name == "float32":
        return "float32"
    if name == "bf16":
        return "bf16"
    raise InputError(f"precision must be auto, float32 or bf16, got '{name}'; use auto")


def arithmetic(precision: Precision, device: torch.device) -> torch.autocast:
    """Return the context in which the network computes; float32 is without TF32."""
    if precision == "float32" and device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")
