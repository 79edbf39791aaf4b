"""The machine that a project file is written for: its GPU or its cores, and their memory."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from unetflow.memory import format_bytes

_CGROUP = Path("/sys/fs/cgroup/memory.max")


@dataclass(frozen=True)
class Machine:
    """Where training will run.

    Parameters
    ----------
    memory : int
        Bytes that a training may have: of the GPU, else of the computer.
    cores : int
        That this process may use.
    gpu : str or None
        Its name.
    """

    memory: int
    cores: int
    gpu: str | None = None

    @property
    def title(self) -> str:
        """Name it in a few words."""
        what = self.gpu or ("1 core" if self.cores == 1 else f"{self.cores} cores")
        return f"{what}, {format_bytes(self.memory)}"


def find_machine() -> Machine:
    """Look at this machine; torch is loaded only where there is a GPU's driver."""
    cores = len(os.sched_getaffinity(0))
    if Path("/proc/driver/nvidia/version").exists():
        import torch

        if torch.cuda.is_available():
            about = torch.cuda.get_device_properties(0)
            return Machine(int(about.total_memory), cores, about.name)
    return Machine(memory_of_computer(), cores)


def memory_of_computer() -> int:
    """Return the computer's memory, or what a container may have of it."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = _CGROUP.read_text().strip() if _CGROUP.exists() else "max"
    return min(whole, int(limit)) if limit.isdigit() else whole
