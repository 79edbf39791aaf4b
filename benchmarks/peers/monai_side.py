"""MONAI's BasicUNet as it comes, with its stock transforms, loss and sliding window (`train_peers.py`)."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

PATCH, BATCH, RATE = 256, 2, 1e-3
SHARE = 0.97  # of the minutes that are planned to be used
N_LOOKS = 10  # at the validation slices, for the best weights


def train(work: Path, out: Path, minutes: float, seed: int) -> None:
    """Train for the minutes and leave ``choose.npy`` and ``test.npy``, probabilities of class 1."""
    import monai
    from monai.losses import DiceCELoss
    from monai.networks.nets import BasicUNet

    monai.utils.set_determinism(seed)
    model = BasicUNet(spatial_dims=2, in_channels=1, out_channels=2)
    loss = DiceCELoss(to_onehot_y=True, softmax=True)
    batches = _batches(work)
    rate = _seconds_a_step(copy.deepcopy(model), loss, batches)
    steps = max(N_LOOKS, int(SHARE * 60 * minutes / rate))
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-5)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    best, kept, done, seconds = -1.0, copy.deepcopy(model.state_dict()), 0, 0.0
    began = time.perf_counter()
    for step in range(1, steps + 1):
        _step(model, loss, optimizer, next(batches))
        schedule.step()
        done = step
        if step % max(1, steps // N_LOOKS) == 0 or step == steps:
            looked = time.perf_counter()
            score = _dice(model, work)
            seconds += time.perf_counter() - looked  # a look costs it no training time
            if score > best:
                best, kept = score, copy.deepcopy(model.state_dict())
    took = time.perf_counter() - began - seconds
    model.load_state_dict(kept)
    for name in ("choose", "test"):
        np.save(out / f"{name}.npy", np.stack([_turned(model, plane) for plane in _images(work, name)]))
    facts = {"steps": done, "seconds": took, "version": f"monai {monai.__version__}",
             "parameters": sum(p.numel() for p in model.parameters())}  # fmt: skip
    (out / "facts.json").write_text(json.dumps(facts))


def _images(work: Path, name: str) -> torch.Tensor:
    """Return the slices (N, 1, 1, Y, X), mean 0 and deviation 1 each."""
    from monai.transforms import NormalizeIntensity

    planes = np.load(work / f"{name}.npy").astype(np.float32)[:, None]
    return torch.stack([torch.as_tensor(NormalizeIntensity()(plane)) for plane in planes])[:, None]


def _batches(work: Path) -> Any:
    from monai.data import CacheDataset, DataLoader
    from monai.transforms import (
        Compose,
        NormalizeIntensityd,
        RandFlipd,
        RandGaussianNoised,
        RandRotate90d,
        RandScaleIntensityd,
        RandShiftIntensityd,
        RandSpatialCropd,
    )

    both = ["image", "label"]
    changes = Compose([
        NormalizeIntensityd("image"),
        RandSpatialCropd(both, (PATCH, PATCH), random_size=False),
        RandFlipd(both, prob=0.5, spatial_axis=0),
        RandFlipd(both, prob=0.5, spatial_axis=1),
        RandRotate90d(both, prob=0.5),
        RandScaleIntensityd("image", factors=0.1, prob=0.5),
        RandShiftIntensityd("image", offsets=0.1, prob=0.5),
        RandGaussianNoised("image", prob=0.1),
    ])  # fmt: skip
    pairs = zip(np.load(work / "fit.npy"), np.load(work / "fit-truth.npy"), strict=True)
    items = [{"image": image[None].astype(np.float32), "label": truth[None]} for image, truth in pairs]
    loader = DataLoader(CacheDataset(items, changes, progress=False), batch_size=BATCH, shuffle=True)
    while True:
        yield from loader


def _step(model: Any, loss: Any, optimizer: Any, batch: Any) -> None:
    model.train()
    optimizer.zero_grad()
    loss(model(batch["image"].as_tensor()), batch["label"].as_tensor()).backward()
    optimizer.step()


def _seconds_a_step(model: Any, loss: Any, batches: Any) -> float:
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    _step(model, loss, optimizer, next(batches))
    began = time.perf_counter()
    for _ in range(5):
        _step(model, loss, optimizer, next(batches))
    return (time.perf_counter() - began) / 5


def _chance(model: Any, image: torch.Tensor) -> torch.Tensor:
    from monai.inferers import sliding_window_inference

    model.eval()
    with torch.inference_mode():
        call = lambda x: model(x).softmax(1)[:, 1:]  # noqa: E731
        found: torch.Tensor = sliding_window_inference(image, (PATCH, PATCH), 4, call, overlap=0.5, mode="gaussian")
    return found[0, 0]


def _turned(model: Any, image: torch.Tensor) -> np.ndarray[Any, Any]:
    """Average over flips and turns, as both other sides do."""
    total = torch.zeros(image.shape[-2:])
    for turn in range(4):
        for flip in ((), (-1,)):
            changed = torch.rot90(image, turn, (-2, -1)).flip(flip)
            total += torch.rot90(_chance(model, changed).flip(flip), -turn, (-2, -1))
    return (total / 8).numpy()


def _dice(model: Any, work: Path) -> float:
    guess = np.stack([_chance(model, image).numpy() > 0.5 for image in _images(work, "choose")])
    truth = np.load(work / "choose-truth.npy") > 0
    return float(2 * (guess & truth).sum() / max(1, guess.sum() + truth.sum()))
