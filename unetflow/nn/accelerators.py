"""Which GPUs this process sees, by names that other processes of the host use too."""

from __future__ import annotations

import torch


def accelerators() -> list[str]:
    """Return a name for each GPU; none where there is none."""
    if not torch.cuda.is_available():
        return []
    return [str(getattr(torch.cuda.get_device_properties(n), "uuid", n)) for n in range(torch.cuda.device_count())]
