"""Weights of a U-Net that plain PyTorch trained do in ours what they did there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import unetflow
from unetflow.errors import InputError
from unetflow.nn.checkpoint import load_model
from unetflow.settings import Settings, make_settings

NORMED = {"depth": 2, "base_channels": 4, "padding": "same", "norm": "batch"}


def pair(c_in: int, c_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for c in (c_in, c_out):
        layers += [nn.Conv2d(c, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
    return nn.Sequential(*layers)


class Theirs(nn.Module):
    """A padded U-Net as it is often written: ups and downs in lists of their own, the skip joined first."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.down1, self.down2 = pair(1, 4), pair(4, 8), pair(8, 16)
        self.ups = nn.ModuleList([nn.ConvTranspose2d(16, 8, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)])
        self.decoders = nn.ModuleList([pair(16, 8), pair(8, 4)])
        self.last = nn.Conv2d(4, 2, 1)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        skips = [self.inc(image)]
        skips.append(self.down1(nn.functional.max_pool2d(skips[-1], 2)))
        deep = self.down2(nn.functional.max_pool2d(skips[-1], 2))
        for up, decoder in zip(self.ups, self.decoders, strict=True):
            deep = decoder(torch.cat([skips.pop(), up(deep).relu()], 1))
        logits: torch.Tensor = self.last(deep)
        return logits


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    torch.manual_seed(1)
    network = Theirs()
    for layer in network.modules():  # as after training: statistics of its own in each layer
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            nn.init.uniform_(layer.weight, 0.5, 2)
    return network.eval()


@pytest.fixture(scope="module")
def example(theirs: Theirs) -> tuple[Any, Any]:
    image = torch.randn(2, 1, 24, 32)
    with torch.no_grad():
        return image.numpy(), theirs(image).numpy()


def settings(**model: Any) -> Settings:
    return make_settings({"model": {**NORMED, **model}})


def saved(theirs: Theirs, folder: Path, ending: str) -> Path:
    path = folder / f"theirs.{ending}"
    if ending == "safetensors":
        save_file(theirs.state_dict(), path)
    else:
        torch.save(theirs.state_dict() if ending == "pt" else {"epoch": 3, "state_dict": theirs.state_dict()}, path)
    return path


@pytest.mark.parametrize("ending", ["pt", "pth", "safetensors"])
def test_their_logits_come_out_of_our_network(
    theirs: Theirs, example: tuple[Any, Any], tmp_path: Path, ending: str
) -> None:
    order = list(theirs.state_dict()) if ending == "safetensors" else None
    done = unetflow.import_weights(
        saved(theirs, tmp_path, ending), tmp_path / "ours.safetensors", settings(), order=order, skip_first=True
    )
    network, record = load_model(done.path)
    with torch.no_grad():
        found = network.eval()(torch.from_numpy(example[0])).numpy()
    assert np.allclose(found, example[1], atol=1e-5)
    assert (record["axes"], record["normalise"], record["n_classes"]) == ("yx", "percentile", 2)
    assert (done.layers["contract.0.0"], done.layers["up.1.0"], done.layers["head"]) == ("inc.0", "ups.0", "last")


def test_an_imported_model_segments(theirs: Theirs, tmp_path: Path) -> None:
    import zarr

    done = unetflow.import_weights(
        saved(theirs, tmp_path, "pt"), tmp_path / "ours.safetensors", settings(), skip_first=True
    )
    raw = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    zarr.save_array(str(tmp_path / "raw.zarr"), raw, zarr_format=2)
    unetflow.segment(settings(), str(tmp_path / "raw.zarr"), model=str(done.path), out=str(tmp_path / "out.zarr"))
    assert zarr.open_array(tmp_path / "out.zarr" / "0").shape == (2, 40, 50)


def test_an_example_tells_that_the_skips_are_joined_the_other_way(
    theirs: Theirs, example: tuple[Any, Any], tmp_path: Path
) -> None:
    file, target = saved(theirs, tmp_path, "pt"), tmp_path / "ours.safetensors"
    with pytest.raises(InputError, match="try skip_first"):
        unetflow.import_weights(file, target, settings(), example=example)
    assert not target.exists()
    unetflow.import_weights(file, target, settings(), example=example, skip_first=True)
    assert target.exists()


class Harm:
    """An object that writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (str(self.path), "w"))


def test_no_code_of_a_file_is_run(theirs: Theirs, tmp_path: Path) -> None:
    torch.save({**theirs.state_dict(), "extra": Harm(tmp_path / "harm")}, tmp_path / "harmful.pt")
    torch.save(theirs, tmp_path / "whole.pt")  # the module itself: its class would be looked up
    for name in ("harmful.pt", "whole.pt"):
        with pytest.raises(InputError, match=r"without running code.*state_dict\(\)"):
            unetflow.import_weights(tmp_path / name, tmp_path / "ours.safetensors", settings())
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "ours.safetensors").exists()


def test_another_network_is_refused_with_the_layers_that_differ(theirs: Theirs, tmp_path: Path) -> None:
    file, target = saved(theirs, tmp_path, "pt"), tmp_path / "ours.safetensors"
    with pytest.raises(InputError, match=r"no head \[3, 4, 1, 1\] \[3\]; too much: last \[2, 4, 1, 1\] \[2\]"):
        unetflow.import_weights(file, target, settings(), n_classes=3)
    with pytest.raises(InputError, match=r"no contract\.3\.0 .* more; set \[model\]"):
        unetflow.import_weights(file, target, settings(depth=3))
    with pytest.raises(InputError, match=r"too much: inc\.1 "):
        unetflow.import_weights(file, target, settings(norm="none"))
    assert not target.exists()


def test_what_cannot_be_read_or_told_apart_is_refused(theirs: Theirs, tmp_path: Path) -> None:
    target = tmp_path / "ours.safetensors"
    for name, content in {"cut.pt": b"PK\x03\x04", "cut.safetensors": b"12", "empty.pth": b""}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError):
            unetflow.import_weights(tmp_path / name, target, settings())
    with pytest.raises(InputError, match="none at"):
        unetflow.import_weights(tmp_path / "absent.pt", target, settings())
    sorted_file = saved(theirs, tmp_path, "safetensors")
    with pytest.raises(InputError, match="give order"):
        unetflow.import_weights(sorted_file, target, settings())
    with pytest.raises(InputError, match="name every tensor"):
        unetflow.import_weights(sorted_file, target, settings(), order=["inc.0.weight"])
    with pytest.raises(InputError, match="not known"):
        whole = make_settings({"model": NORMED, "prepare": {"normalise_per": "training"}})
        unetflow.import_weights(saved(theirs, tmp_path, "pt"), target, whole)
    assert not target.exists()
