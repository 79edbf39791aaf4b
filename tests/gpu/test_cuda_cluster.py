"""A run through `LocalCUDACluster` where GPUs are: a worker a device, CPU bytes within the contract's bounds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

pytestmark = pytest.mark.gpu

# Workers import the tasks, and this module the tiny project, by these names.
sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))


def _place(dask_worker: Any) -> dict[str, Any]:
    import torch

    return {
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "devices": torch.cuda.device_count(),
        "resources": dict(dask_worker.state.total_resources),
    }


def test_there_is_a_worker_for_each_device_and_each_sees_its_own_first() -> None:
    from unetflow.runtime.cluster import open_client

    with open_client("cuda") as client:
        assert client is not None
        client.wait_for_workers(torch.cuda.device_count(), timeout=120)
        found = list(client.run(_place).values())
        assert client.scheduler.address.startswith("tls://127.0.0.1:")
    assert len(found) == torch.cuda.device_count()
    assert len({place["visible"].split(",")[0] for place in found}) == len(found)
    assert all(place["resources"] == {"GPU": 1.0} for place in found)


def test_visible_devices_are_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    from unetflow.runtime.cluster import open_client

    last = str(torch.cuda.device_count() - 1)
    with open_client("cuda", options={"CUDA_VISIBLE_DEVICES": last}) as client:
        assert client is not None
        assert [place["visible"] for place in client.run(_place).values()] == [last]


def test_prepare_train_and_segment_run_through_it_and_the_device_is_at_work(tmp_path: Path) -> None:
    import project

    from unetflow.runtime.cluster import open_client
    from unetflow.stages.prepare import prepare
    from unetflow.stages.segment import segment
    from unetflow.stages.train import train

    project.make_volume(tmp_path, (8, 512, 512))
    settings = project.settings_in(tmp_path, train={"steps": 100, "batch_size": 4}, model={"base_channels": 16})
    with open_client("cuda", log_folder=tmp_path / "logs") as client, _Utilisation() as used:
        prepare(settings, client)
        train(settings, client)
        result = segment(settings, str(tmp_path / "raw.zarr"), client, out=str(tmp_path / "gpu.zarr"))
    assert result["quarantined"] == []
    segment(settings, str(tmp_path / "raw.zarr"), out=str(tmp_path / "cpu.zarr"))
    here, there = (np.asarray(zarr.open_array(tmp_path / name / "0")[:], int) for name in ("cpu.zarr", "gpu.zarr"))
    assert (np.abs(here - there) > 3).mean() <= 0.01
    print(f"utilisation: mean {used.mean:.0f} %, most {used.most:.0f} %")
    assert used.most > 0


class _Utilisation:
    """Ask nvidia-smi for the share of time in which kernels run, beside what runs meanwhile."""

    def __enter__(self) -> _Utilisation:
        query = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
        self._process = subprocess.Popen(query, stdout=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        values = [int(line) for line in self._process.communicate()[0].split() if line.isdigit()]
        self.mean, self.most = (float(np.mean(values)), float(max(values))) if values else (0.0, 0.0)
