"""Files of weights are whole or refused, and never run anything."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unetflow.architecture import UNetSpec
from unetflow.errors import InputError
from unetflow.nn.checkpoint import export_model, load_latest, load_model, save_checkpoint
from unetflow.nn.tensorfile import read_tensors, write_tensors
from unetflow.nn.unet import UNet


@pytest.fixture
def model() -> UNet:
    torch.manual_seed(0)
    return UNet(UNetSpec.build(depth=1, base_channels=2, norm="batch"))


class Canary:
    """A pickle that would leave a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_a_model_comes_back_with_its_record(model: UNet, tmp_path: Path) -> None:
    path = tmp_path / "run" / "model.safetensors"
    export_model(path, model, {"axes": "yx", "scores": {"dice": 0.5}})
    again, metadata = load_model(path)
    assert again.spec == model.spec
    assert metadata["axes"] == "yx" and metadata["scores"] == {"dice": 0.5}
    for (name, one), two in zip(model.state_dict().items(), again.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    image = torch.randn(1, 1, 20, 20)
    assert torch.equal(model.eval()(image), again.eval()(image))
    assert all(parameter.requires_grad for parameter in again.parameters())


def test_a_run_folder_serves_as_well(model: UNet, tmp_path: Path) -> None:
    export_model(tmp_path / "model.safetensors", model, {})
    assert load_model(tmp_path)[0].spec == model.spec


def test_metadata_is_one_json_entry_and_equal_models_give_equal_bytes(model: UNet, tmp_path: Path) -> None:
    for name in "ab":
        export_model(tmp_path / name, model, {"z": 1, "a": 2})
    data = (tmp_path / "a").read_bytes()
    assert data == (tmp_path / "b").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    metadata = json.loads(data[8 : 8 + length])["__metadata__"]
    assert list(metadata) == ["unetflow"]
    assert json.loads(metadata["unetflow"])["architecture"] == model.spec.to_dict()


def test_other_weights_can_be_exported_than_the_models_own(model: UNet, tmp_path: Path) -> None:
    state = {name: torch.zeros_like(tensor) for name, tensor in model.state_dict().items()}
    export_model(tmp_path / "m", model, {}, state)
    assert not any(tensor.any() for tensor in load_model(tmp_path / "m")[0].state_dict().values())


def test_a_missing_model_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing.safetensors"):
        with pytest.raises(InputError, match="not there"):
            load_model(path)


def test_a_pickle_is_refused_and_not_executed(tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InputError, match="written by unetflow"):
        load_model(path)
    torch.save({"weights": Canary(canary)}, path)
    with pytest.raises(InputError, match="written by unetflow"):
        load_model(path)
    (tmp_path / "step-00000001.safetensors").write_bytes(pickle.dumps(Canary(canary)))
    with pytest.raises(InputError, match="damaged"):
        load_latest(tmp_path)
    assert not canary.exists()


def test_a_header_of_absurd_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(struct.pack("<Q", 2**63) + b"{}" * 100)
    with pytest.raises(InputError, match="whole"):
        load_model(path)


def test_tensors_that_are_no_model_of_ours_are_refused(model: UNet, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {},
        {"architecture": None},
        {"architecture": {"depth": "deep"}},
        {"architecture": {"wings": 2}},
        {"architecture": {"depth": 1, "pool": [["x", 2]]}},
        {"architecture": {"depth": 1, "pool": [[float("inf"), 2]]}},
        {"architecture": {"depth": 1, "kernel": [[float("inf")]]}},
        {"architecture": UNetSpec.build(depth=2, base_channels=2).to_dict()},
    ]
    for record in records:
        write_tensors(tmp_path / "m", model.state_dict(), record)
        with pytest.raises(InputError, match="written by unetflow"):
            load_model(tmp_path / "m")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_damage_to_a_file_is_noticed(model: UNet, tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    export_model(path, model, {"axes": "yx"})
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    with pytest.raises(InputError):
        load_model(path)


def test_a_failed_write_leaves_the_old_file_and_no_rest(
    model: UNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.safetensors"
    export_model(path, model, {"number": 1})

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="space"):
        export_model(path, model, {"number": 2})
    assert load_model(path)[1]["number"] == 1
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_newest_checkpoint_is_loaded_and_two_are_kept(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "none") is None
    for step in (5, 10, 15):
        save_checkpoint(tmp_path, step, {"model": {"a.b": torch.tensor(step)}, "empty": {}}, {"n": step})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "step-00000010.safetensors",
        "step-00000015.safetensors",
    ]
    found = load_latest(tmp_path)
    assert found is not None
    assert (found.step, found.state, found.groups["model"]["a.b"].item()) == (15, {"n": 15}, 15)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for step in (5, 10):
        path = save_checkpoint(tmp_path, step, {"model": {"a": torch.ones(100)}}, {})
    path.write_bytes(path.read_bytes()[:-7])
    found = load_latest(tmp_path)
    assert found is not None and found.step == 5
    assert path.name in caplog.text
    # Training goes on from 5: what lay beyond is in the way of no later fall back.
    save_checkpoint(tmp_path, 7, {"model": {"a": torch.ones(100)}}, {})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "step-00000005.safetensors",
        "step-00000007.safetensors",
    ]


def test_checkpoints_that_are_all_damaged_are_refused(tmp_path: Path) -> None:
    for step in (5, 10):
        save_checkpoint(tmp_path, step, {}, {}).write_bytes(b"garbage")
    with pytest.raises(InputError, match="--overwrite"):
        load_latest(tmp_path)


def test_tensors_of_any_kind_layout_and_shared_memory_come_back(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = {
        "turned": base.movedim(0, -1),
        "shared": base,
        "scalar": torch.tensor(3.0),
        "bytes": torch.get_rng_state(),
        "half": base.bfloat16(),
        "empty": torch.zeros(0, 3),
    }
    write_tensors(tmp_path / "t", tensors, {"a": [1, 2]})
    again, record = read_tensors(tmp_path / "t")
    assert record == {"a": [1, 2]}
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)
