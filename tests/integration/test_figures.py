"""What a plan says of a segmentation, held against the segmentation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import project
import pytest
import zarr
from typer.testing import CliRunner

from unetflow.cli import app
from unetflow.errors import InputError
from unetflow.stages.figures import Tally, compare, plan_figures
from unetflow.stages.segment import segment
from unetflow.stages.segment_plan import Plan, plan
from unetflow.stages.worker_memory import BASE_BYTES


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stack without empty places, of thick chunks."""
    path = tmp_path_factory.mktemp("noise") / "noise.zarr"
    voxels = np.random.default_rng(0).integers(1, 255, (6, 200, 260), np.uint8)
    array = zarr.create_array(path, shape=voxels.shape, chunks=(4, 64, 64), dtype="uint8")
    array[:] = voxels
    return path


def planned(trained: Path, volume: Path, **segment_settings: Any) -> Plan:
    settings = project.settings_in(trained, segment={"memory": "3 MB", **segment_settings})
    return plan(settings, str(volume), model=str(trained / "run"), axes="zyx")


@pytest.mark.parametrize(
    "wishes", [{}, {"mode": "blend"}, {"shard": [1, 40, 40]}, {"shard": [2, 50, 50], "memory": "5 MB"}]
)
def test_a_run_computes_and_reads_what_was_planned(
    trained: Path, noise: Path, tmp_path: Path, wishes: dict[str, Any]
) -> None:
    made = planned(trained, noise, **wishes)
    figures = plan_figures(made)
    assert figures.n_blocks >= 3
    assert figures.read_amplification >= 1
    assert figures.work_factor > 1
    result = segment(made.settings, str(noise), model=str(trained / "run"), axes="zyx", out=str(tmp_path / "out.zarr"))
    real, said = result["cost"]["real"], result["cost"]["planned"]
    assert real["work_factor"] == said["work_factor"] == round(figures.work_factor, 3)
    # One process keeps its chunks from brick to brick, so it may find more than is planned.
    assert 0.5 * figures.chunks_fetched <= real["chunks"] <= figures.chunks_fetched
    assert real["bytes_read"] <= said["bytes_read"]
    assert real["chunks"] >= figures.chunks_distinct
    assert real["seconds"] > 0
    assert real["memory_worker"] > 0


def test_files_and_bytes_are_those_that_are_written(trained: Path, noise: Path, tmp_path: Path) -> None:
    made = planned(trained, noise, outputs=["probabilities", "classes"], dtype="float32")
    out = tmp_path / "out.zarr"
    segment(made.settings, str(noise), model=str(trained / "run"), axes="zyx", out=str(out))
    figures = plan_figures(made)
    files = project.tree(out)
    assert len(files) <= figures.n_files <= len(files) + 12
    arrays = [zarr.open_array(p.parent) for p in out.rglob("zarr.json") if (p.parent / "c").exists()]
    assert figures.bytes_written == sum(a.nbytes for a in arrays)


def test_memory_is_the_sum_of_its_parts_and_follows_threads_and_tiles(trained: Path, noise: Path) -> None:
    small, large = planned(trained, noise), planned(trained, noise, memory="20 MB")
    one, two = plan_figures(small), plan_figures(planned(trained, noise, shard=[1, 200, 200]), n_threads=2)
    assert one.memory_worker > BASE_BYTES
    assert two.memory.network > one.memory.network
    assert plan_figures(large).memory.network > one.memory.network
    assert one.memory.cache == 6 * 200 * 260  # no more than the volume has
    assert plan_figures(small, n_threads=64).memory.network < 64 * one.memory.network
    assert one.memory.in_words().startswith("3")


def test_reports_add_up_whatever_their_order(trained: Path, noise: Path) -> None:
    made = planned(trained, noise)
    reports = [{"tiles": n, "fetched": 10 * n, "chunks": n, "peak": 100 - n, "seconds": 1.0} for n in range(4)]
    sums = []
    for order in (reports, reports[::-1]):
        tally = Tally(made)
        for number, report in enumerate(order):
            tally.add(number, report)
        sums.append(compare(plan_figures(made), tally, 4.0, n_blocks=5, n_workers=2))
    assert sums[0] == sums[1]
    assert sums[0]["real"]["bytes_read"] == 60
    assert sums[0]["real"]["memory_worker"] == 100
    # Three rounds of two workers, a second each.
    assert (sums[0]["planned"]["seconds_from_first_blocks"], sums[0]["real"]["seconds"]) == (3.0, 4.0)
    assert (
        compare(plan_figures(made), Tally(made), 4.0, n_blocks=0, n_workers=2)["planned"]["seconds_from_first_blocks"]
        is None
    )


def test_the_plan_tells_time_memory_and_room_and_writes_nothing(trained: Path, noise: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.zarr"
    words = ["segment", str(noise), "-m", str(trained / "run"), "-o", str(out), "--axes", "zyx", "--plan"]
    result = CliRunner().invoke(app, [*words, "--json"])
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert not out.exists()
    assert told["time"].startswith("about ")
    assert "of this machine" in told["time"]
    assert told["figures"]["seconds"] > 0
    assert "base" in told["memory_worker"]
    assert told["room"]["files"] == told["files"] > 0
    assert told["room"]["free"]
    assert told["mode"] == "exact"
    text = CliRunner().invoke(app, words)
    assert "work_factor" in text.stdout


def test_slices_that_do_not_fit_the_cache_are_told_with_the_cure(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "slices.zarr"
    zarr.create_array(path, shape=(6, 3000, 3000), chunks=(6, 3000, 3000), dtype="uint8")
    planned(trained, path)
    assert not caplog.records
    huge = tmp_path / "huge.zarr"
    zarr.create_array(huge, shape=(2, 40_000, 40_000), chunks=(1, 40_000, 40_000), dtype="uint8")
    planned(trained, huge)
    assert "unetflow convert" in caplog.text


def test_a_result_that_cannot_fit_the_disk_is_refused(trained: Path, tmp_path: Path) -> None:
    path = tmp_path / "endless.zarr"
    zarr.create_array(path, shape=(1000, 1_000_000, 1_000_000), chunks=(1, 512, 512), dtype="uint8")
    with pytest.raises(InputError, match="room"):
        planned(trained, path)
