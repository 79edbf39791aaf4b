"""nnU-Net v2, 2-D, with its own planner, trainer and predictor; run by a Python of its own (`train_peers.py`).

Only these numbers are not its own: patch 256, batch 4, and epochs so short and few that its schedule ends in
the minutes. Augmentation, loss, deep supervision, optimiser, schedule and mirroring are as it comes.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

ITERATIONS = 10  # an epoch: the rate falls at each
SHARE = 0.97  # of the minutes that are planned to be used


def train(work: Path, out: Path, minutes: float, seed: int) -> None:
    """Train for the minutes and leave ``choose.npy`` and ``test.npy``, probabilities of class 1."""
    base = out / "nnunet"
    shutil.rmtree(base, ignore_errors=True)
    for name in ("raw", "preprocessed", "results"):
        (base / name).mkdir(parents=True)
        os.environ[f"nnUNet_{name}"] = str(base / name)
    os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_def_n_proc": "1", "nnUNet_compile": "f"}
    cut = _write_dataset(work, base / "raw" / "Dataset001_isbi")
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments, preprocess

    extract_fingerprints([1], num_processes=1, show_progress_bar=False)
    plan_experiments([1])
    place = base / "preprocessed" / "Dataset001_isbi"
    plans = json.loads((place / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"] |= {"patch_size": [256, 256], "batch_size": 4}
    (place / "nnUNetPlans.json").write_text(json.dumps(plans))
    preprocess([1], configurations=["2d"], num_processes=[1], show_progress_bar=False)
    (place / "splits_final.json").write_text(json.dumps([cut]))

    # No processes of its own for augmentation: they would take the cores from the network.
    os.environ |= {"nnUNet_n_proc_DA": "0"}
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    dataset = json.loads((base / "raw" / "Dataset001_isbi" / "dataset.json").read_text())
    trainer, seconds, steps = _run(plans, dataset, minutes)
    predict = _predictor(trainer)
    for name in ("choose", "test"):
        np.save(out / f"{name}.npy", np.stack([predict(plane) for plane in np.load(work / f"{name}.npy")]))
    from importlib import metadata

    facts = {"steps": steps, "seconds": seconds, "version": f"nnunetv2 {metadata.version('nnunetv2')}",
             "parameters": sum(p.numel() for p in trainer.network.parameters())}  # fmt: skip
    (out / "facts.json").write_text(json.dumps(facts))
    shutil.rmtree(base)


def _write_dataset(work: Path, folder: Path) -> dict[str, list[str]]:
    """Write the slices as PNG and return the split."""
    from PIL import Image

    cut: dict[str, list[str]] = {"train": [], "val": []}
    for kind in ("imagesTr", "labelsTr"):
        (folder / kind).mkdir(parents=True)
    for split, key in (("fit", "train"), ("choose", "val")):
        pairs = zip(np.load(work / f"{split}.npy"), np.load(work / f"{split}-truth.npy"), strict=True)
        for number, (image, truth) in enumerate(pairs):
            name = f"{split}_{number:03d}"
            Image.fromarray(image).save(folder / "imagesTr" / f"{name}_0000.png")
            Image.fromarray(truth).save(folder / "labelsTr" / f"{name}.png")
            cut[key].append(name)
    about = {"channel_names": {"0": "em"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png",
             "numTraining": len(cut["train"]) + len(cut["val"])}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(about))
    return cut


def _run(plans: dict[str, Any], dataset: dict[str, Any], minutes: float) -> tuple[Any, float, int]:
    import torch
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    def trainer() -> Any:
        # Its command adds this key for the trainer to take out again.
        return nnUNetTrainer({**plans, "continue_training": False}, "2d", 0, dataset, torch.device("cpu"))

    probe = trainer()
    probe.on_train_start()
    batches = [next(probe.dataloader_train) for _ in range(3)]
    probe.train_step(batches[0])
    began = time.perf_counter()
    for batch in batches[1:]:
        probe.train_step(batch)
    rate = (time.perf_counter() - began) / 2
    probe.on_train_end()

    run = trainer()
    n_steps = max(1, int(SHARE * 60 * minutes / rate))
    run.num_iterations_per_epoch = max(1, min(ITERATIONS, n_steps // 3))
    run.num_val_iterations_per_epoch = 1
    # A validation is a forward pass, about a third of a step, and writes a checkpoint now and then.
    run.num_epochs = max(1, int(n_steps / (run.num_iterations_per_epoch + 0.5)))
    run.save_every = 10**6
    began = time.perf_counter()
    run.run_training()
    return run, time.perf_counter() - began, run.num_epochs * run.num_iterations_per_epoch


def _predictor(trainer: Any) -> Any:
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    predictor = nnUNetPredictor(
        tile_step_size=0.5, use_gaussian=True, use_mirroring=True, perform_everything_on_device=False,
        device=torch.device("cpu"), allow_tqdm=False,
    )  # fmt: skip
    trainer.set_deep_supervision_enabled(False)
    trainer.network.eval()
    predictor.manual_initialization(
        trainer.network, trainer.plans_manager, trainer.configuration_manager,
        [trainer.network.state_dict()], trainer.dataset_json, "nnUNetTrainer",
        trainer.inference_allowed_mirroring_axes,
    )  # fmt: skip

    def predict(plane: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        image = plane[None, None].astype(np.float32)
        _, chances = predictor.predict_single_npy_array(
            image, {"spacing": [999, 1, 1]}, save_or_return_probabilities=True
        )
        return np.asarray(chances[1, 0], np.float32)

    return predict
