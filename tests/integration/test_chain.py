"""The stages one after another: the same bytes anywhere, and what is written is what the contract says."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import project
import pytest
import zarr

from unetflow.errors import InputError
from unetflow.stages.evaluate import evaluate
from unetflow.stages.prepare import prepare
from unetflow.stages.segment import segment
from unetflow.stages.train import train


def test_prepare_gives_the_same_bytes_with_two_workers_and_none(trained: Path, two_workers: Any) -> None:
    settings = project.settings_in(trained, "run-two")
    result = prepare(settings, two_workers)
    assert result["patches"]["train"] == 8
    assert project.tree(trained / "run-two" / "dataset.zarr") == project.tree(trained / "run" / "dataset.zarr")


@pytest.mark.parametrize("kind", ["classes", "multilabel"])
def test_weights_of_classes_do_not_depend_on_the_cut(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(0)
    labels = (np.kron(rng.random((12, 14)), np.ones((8, 9))) > 0.6).astype(np.uint8)
    raw = rng.integers(0, 255, labels.shape).astype(np.uint8)
    is_multi = kind == "multilabel"
    zarr.save_array(tmp_path / "raw.zarr", raw[None] if is_multi else raw)
    zarr.save_array(tmp_path / "labels.zarr", np.stack([labels, labels[::-1]]) if is_multi else labels)
    data = {"raw": "raw.zarr", "labels": "labels.zarr", "kind": kind}
    if is_multi:
        data["axes"] = "cyx"
    found = []
    for number, shard in enumerate(([200, 200], [32, 48])):
        values = {
            "data": [data],
            "prepare": {"shard": shard, "patch_shape": [60, 60], "validation_fraction": 0.0},
            "model": {"head": "sigmoid"} if is_multi else {},
        }
        settings = project.settings_in(tmp_path, f"run-{number}", **values)
        prepare(settings)
        found.append(np.asarray(zarr.open_array(tmp_path / f"run-{number}" / "dataset.zarr" / "weights" / "0")[:]))
    assert found[0].max() > 2, "no border weight stands anywhere"
    assert np.array_equal(found[0], found[1])


def test_segment_gives_the_same_bytes_on_any_cluster(trained: Path, two_workers: Any) -> None:
    settings = project.settings_in(trained)
    trees = []
    for name, client in (("one", None), ("two", two_workers)):
        out = trained / f"{name}.zarr"
        result = segment(settings, str(trained / "raw.zarr"), client, out=str(out))
        assert result["quarantined"] == []
        trees.append(project.tree(out))
    assert trees[0] == trees[1]


def test_the_same_command_again_does_nothing(trained: Path) -> None:
    settings = project.settings_in(trained)
    out = str(trained / "again.zarr")
    first = segment(settings, str(trained / "raw.zarr"), out=out)
    before = project.tree(Path(out))
    second = segment(settings, str(trained / "raw.zarr"), out=out)
    assert first["blocks_skipped"] == 0
    assert second["blocks_skipped"] == second["blocks"] > 0
    assert project.tree(Path(out)) == before


def test_other_settings_on_an_output_are_refused_by_name(trained: Path) -> None:
    out = str(trained / "other.zarr")
    segment(project.settings_in(trained), str(trained / "raw.zarr"), out=out)
    changed = project.settings_in(trained, segment={"threshold": 0.7})
    with pytest.raises(InputError, match=r"threshold.*--overwrite"):
        segment(changed, str(trained / "raw.zarr"), out=out)


def test_another_model_input_or_region_on_an_output_is_refused_by_name(trained: Path, tmp_path: Path) -> None:
    from unetflow.nn.checkpoint import export_model, load_model

    shutil.copytree(trained / "raw.zarr", tmp_path / "raw.zarr")
    settings, raw, out = project.settings_in(trained), str(tmp_path / "raw.zarr"), str(tmp_path / "out.zarr")
    segment(settings, raw, out=out)
    before = project.tree(tmp_path / "out.zarr")
    model, facts = load_model(trained / "run")
    facts.pop("architecture")
    export_model(tmp_path / "other.safetensors", model, {**facts, "seed": 99})
    with pytest.raises(InputError, match=r"model = .*--overwrite"):
        segment(settings, raw, out=out, model=str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match=r"roi = null where it is now .*--overwrite"):
        segment(settings, raw, out=out, roi="0:1,:,:")
    chunk = next(path for path in (tmp_path / "raw.zarr" / "0" / "c").rglob("*") if path.is_file())
    os.utime(chunk, ns=(1, 1))
    with pytest.raises(InputError, match=r"inputs\. = .*--overwrite"):
        segment(settings, raw, out=out)
    assert project.tree(tmp_path / "out.zarr") == before


def test_other_data_for_a_dataset_and_other_numbers_for_a_training_are_refused_by_name(trained: Path) -> None:
    before = project.tree(trained / "run")
    with pytest.raises(InputError, match=r"settings\.prepare\.elastic_sigma = 2.0 where it is now 3.0"):
        prepare(project.settings_in(trained, prepare={"elastic_sigma": 3.0}))
    with pytest.raises(InputError, match=r"train\.learning_rate = 0.01 where it is now 0.5"):
        train(project.settings_in(trained, train={"learning_rate": 0.5}))
    chunk = next(path for path in (trained / "labels.zarr" / "0" / "c").rglob("*") if path.is_file())
    stamp = chunk.stat()
    os.utime(chunk, ns=(1, 1))
    try:
        with pytest.raises(InputError, match=r"inputs\.data 0 = .*--overwrite"):
            prepare(project.settings_in(trained))
    finally:
        os.utime(chunk, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert project.tree(trained / "run") == before


def test_a_block_done_gently_runs_one_tile_at_a_time_and_has_the_same_bytes(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unetflow.nn.predict import Predictor
    from unetflow.stages import segment as module

    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    at_once: list[tuple[int, int]] = []
    each, predict_task = Predictor.each, module.predict_task

    def note(self: Predictor, inputs: Any, **options: Any) -> Any:
        if "threads" in options:
            at_once.append((options["threads"], options["batch"]))
        return each(self, inputs, **options)

    monkeypatch.setattr(Predictor, "each", note)
    settings = project.settings_in(trained)
    segment(settings, str(trained / "raw.zarr"), out=str(tmp_path / "usual.zarr"))
    assert {threads for threads, _ in at_once} == {4}
    at_once.clear()
    monkeypatch.setattr(module, "predict_task", lambda *args: predict_task(*args).gently())
    segment(settings, str(trained / "raw.zarr"), out=str(tmp_path / "gentle.zarr"))
    assert set(at_once) == {(1, 1)}
    assert project.tree(tmp_path / "gentle.zarr") == project.tree(tmp_path / "usual.zarr")


def test_a_region_of_interest_is_the_same_part_of_the_whole(trained: Path) -> None:
    settings = project.settings_in(trained)
    whole, part = trained / "whole.zarr", trained / "part.zarr"
    segment(settings, str(trained / "raw.zarr"), out=str(whole))
    segment(settings, str(trained / "raw.zarr"), out=str(part), roi="1:3,10:71,37:130")
    here = zarr.open_array(part / "0")[:]
    assert np.array_equal(here, zarr.open_array(whole / "0")[:, 1:3, 10:71, 37:130])
    transform = zarr.open_group(part).attrs["ome"]["multiscales"][0]["datasets"][0]["coordinateTransformations"][1]
    assert np.allclose(transform["translation"], [0, 0.05, 0.1, 0.37])


def test_nothing_is_computed_or_stored_outside_the_mask(trained: Path) -> None:
    mask = np.zeros(project.SHAPE, np.uint8)
    mask[0, 20:60, 20:90] = 1
    zarr.save_array(trained / "mask.zarr", mask)
    settings = project.settings_in(trained)
    out = trained / "masked.zarr"
    segment(settings, str(trained / "raw.zarr"), out=str(out), mask=str(trained / "mask.zarr"))
    p = zarr.open_array(out / "0")[:]
    assert p[:, mask == 0].max() == 0
    assert p[:, mask == 1].max() > 0
    assert not list((out / "0" / "c").glob("*/1/*")), "a plane without mask is stored"


def test_instances_are_the_components_of_the_stored_classes(trained: Path) -> None:
    from scipy import ndimage

    out = trained / "objects.zarr"
    settings = project.settings_in(trained, segment={"shard": [1, 32, 64], "chunk": [1, 32, 32]})
    segment(settings, str(trained / "raw.zarr"), out=str(out))
    classes = zarr.open_array(out / "labels" / "classes" / "0")[:]
    found = zarr.open_array(out / "labels" / "instances" / "0")[:]
    in_plane = np.zeros((3, 3, 3), bool)
    in_plane[1] = ndimage.generate_binary_structure(2, 1)
    expected, count = ndimage.label(classes > 0, in_plane)
    firsts = ndimage.minimum(np.arange(classes.size).reshape(classes.shape), expected, range(1, count + 1))
    rank = np.concatenate([[0], np.argsort(np.argsort(firsts)) + 1])
    assert count > 1
    assert np.array_equal(found, rank[expected])


def test_scores_are_the_same_from_blocks_and_from_arrays(trained: Path, two_workers: Any) -> None:
    from skimage.metrics import adapted_rand_error, variation_of_information

    out = trained / "scored.zarr"
    settings = project.settings_in(trained)
    segment(settings, str(trained / "raw.zarr"), out=str(out))
    scores = evaluate(settings, str(out), str(trained / "labels.zarr"), two_workers)
    truth = zarr.open_array(trained / "labels.zarr" / "0")[:].astype(np.int64)
    found = zarr.open_array(out / "labels" / "instances" / "0")[:].astype(np.int64)
    classes = zarr.open_array(out / "labels" / "classes" / "0")[:]
    error, precision, recall = adapted_rand_error(truth, found)
    split, merge = variation_of_information(truth, found, ignore_labels=(0,))
    assert scores["adapted_rand_error"] == pytest.approx(error, abs=1e-9)
    assert (scores["rand_precision"], scores["rand_recall"]) == pytest.approx((precision, recall), abs=1e-9)
    assert (scores["voi_split"], scores["voi_merge"]) == pytest.approx((split, merge), abs=1e-9)
    assert scores["pixel_error"] == pytest.approx(np.mean(classes != (truth > 0)))
    sections = evaluate(settings, str(out), str(trained / "labels.zarr"), sections=True)
    assert sections["sections"] == 3
    assert sections["warping_error"] is not None


def test_training_goes_on_to_more_steps_and_leaves_its_record(trained: Path) -> None:
    more = project.settings_in(trained, train={"steps": 14})
    result = train(more)
    assert result["steps"] == 14
    rows = (trained / "run" / "metrics.csv").read_text().splitlines()
    assert rows[0].startswith("step,")
    assert [int(row.split(",")[0]) for row in rows[1:]][-1] == 14


def test_training_on_a_worker_gives_the_weights_of_this_process(trained: Path) -> None:
    import shutil

    from safetensors.numpy import load_file

    from unetflow.runtime.cluster import open_client

    for name in ("here", "there"):
        shutil.copytree(trained / "run" / "dataset.zarr", trained / name / "dataset.zarr")
    # One thread on both sides, and one rank: the order of sums follows the number of either.
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    train(project.settings_in(trained, "here"))
    torch.set_num_threads(threads)
    events: list[dict[str, Any]] = []
    with open_client("local", workers=1, threads=1) as client:
        train(project.settings_in(trained, "there"), client, on_event=events.append)
    here, there = (load_file(trained / name / "model.safetensors") for name in ("here", "there"))
    assert all(np.array_equal(here[key], there[key]) for key in here)
    assert [e["step"] for e in events if e["event"] == "step"] == list(range(1, 13))


def test_the_output_is_an_image_of_ome_zarr_0_5_with_label_images(trained: Path) -> None:
    out = trained / "ome.zarr"
    segment(project.settings_in(trained), str(trained / "raw.zarr"), out=str(out))
    root = json.loads((out / "zarr.json").read_text())["attributes"]
    assert root["ome"]["version"] == "0.5"
    assert [a["name"] for a in root["ome"]["multiscales"][0]["axes"]] == ["c", "z", "y", "x"]
    labels = json.loads((out / "labels" / "zarr.json").read_text())["attributes"]["ome"]["labels"]
    assert labels == ["classes", "instances"]
    assert root["unetflow"]["tile"][0] == 1


def test_elastic_patches_keep_to_their_volume_and_weigh_every_class(trained: Path) -> None:
    dataset = zarr.open_group(trained / "run" / "dataset.zarr", mode="r")
    image, target, weight = (dataset[f"patches/train/{name}"][:] for name in ("image", "target", "weight"))
    assert image.shape == (8, 1, 60, 60)
    assert target.shape == weight.shape == (8, 20, 20)
    assert image.dtype == np.uint8
    assert set(np.unique(target)) == {0, 1}
    assert (weight > 0).all()
    facts = dict(dataset.attrs)["unetflow"]
    counts, weights = facts["class_counts"], facts["class_weights"]
    n = sum(counts.values())
    assert weights == pytest.approx([n / (2 * counts["0"]), n / (2 * counts["1"])])


def test_parts_joined_by_the_same_command_give_the_bytes_of_one_run(trained: Path) -> None:
    settings = project.settings_in(trained)
    raw, out, whole = str(trained / "raw.zarr"), trained / "parts.zarr", trained / "one-piece.zarr"
    segment(settings, raw, out=str(whole))
    done = [segment(settings, raw, out=str(out), part=f"{k}/4") for k in (3, 1, 4)]
    assert not (out / "labels" / "instances" / "0" / "c").exists()
    joined = segment(settings, raw, out=str(out))
    n_predicted = sum(r["blocks"] - 1 for r in done)  # each part measures the volume for itself: a block
    assert n_predicted == 2  # of 3 blocks; the first of four parts has none
    assert joined["blocks_skipped"] == n_predicted + 1
    assert project.tree(out) == project.tree(whole)
    assert not (out / ".unetflow" / "parts").exists()
    again = segment(settings, raw, out=str(out), part="2/4")
    assert again["blocks_skipped"] == again["blocks"]
    with pytest.raises(InputError, match="--overwrite starts a whole output anew"):
        segment(settings, raw, out=str(out), part="2/4", overwrite=True)
