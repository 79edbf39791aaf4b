"""Fine-tuning begins with the weights of a model, and refuses those that do not fit."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import project
import pytest
import torch

from unetflow.errors import InputError
from unetflow.nn.checkpoint import load_model
from unetflow.nn.finetune import starting_weights
from unetflow.settings import Settings
from unetflow.stages import train as stage

STILL = {"steps": 1, "learning_rate": 1e-12}  # so that what comes out is what went in


def settings_for(trained: Path, folder: Path, **sections: Any) -> Settings:
    """Return settings of a run of its own with the same dataset."""
    shutil.copytree(trained / "run" / "dataset.zarr", folder / "run" / "dataset.zarr")
    shutil.copytree(trained / "run" / ".unetflow" / "prepare", folder / "run" / ".unetflow" / "prepare")
    return project.settings_in(folder, **sections)


@pytest.mark.parametrize("where", ["run", "run/model.safetensors"])
def test_training_begins_with_the_weights_of_a_run_folder_or_a_file(trained: Path, tmp_path: Path, where: str) -> None:
    settings = settings_for(trained, tmp_path, train=STILL, model={"deep_supervision": True, "dropout": 0.1})
    result = stage.train(settings, initial=str(trained / where))
    before, after = load_model(trained / "run")[0], load_model(result["model"])[0]
    for (name, old), (_, new) in zip(before.named_parameters(), after.named_parameters(), strict=True):
        assert torch.allclose(old, new, atol=1e-6), name


def test_another_number_of_classes_is_refused_until_the_head_may_be_drawn_anew(
    trained: Path, tmp_path: Path
) -> None:
    settings = settings_for(trained, tmp_path, train=STILL, model={"head": "sigmoid"})
    model = str(trained / "run")
    with pytest.raises(InputError, match=r"out_channels 2 there, 1 here.*--new-head"):
        stage.plan(settings, model)
    result = stage.train(settings, initial=model, new_head=True)
    before, after = load_model(model)[0], load_model(result["model"])[0]
    assert torch.allclose(before.join[0][0].weight, after.join[0][0].weight, atol=1e-6)
    assert after.head.weight.shape[0] == 1


def test_another_network_is_refused_by_its_numbers_and_nothing_is_written(trained: Path, tmp_path: Path) -> None:
    settings = settings_for(trained, tmp_path, model={"norm": "layer"})
    for new_head in (False, True):
        with pytest.raises(InputError, match=r"norm batch there, layer here; write the numbers"):
            stage.train(settings, initial=str(trained / "run"), new_head=new_head)
    with pytest.raises(InputError, match="name it with --from"):
        stage.train(settings, new_head=True)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_model_that_saw_other_grey_values_is_told(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_for(trained, tmp_path)
    facts = {**stage.read_facts(settings.run_folder), "normalise": "zscore"}
    spec = stage.plan(settings).spec
    with caplog.at_level(logging.WARNING):
        stage.start_from(str(trained / "run"), False, spec, facts)
    assert "percentile, this dataset by zscore" in caplog.text


def test_a_new_head_is_drawn_by_the_seed_and_leaves_the_caller_s_random_state(trained: Path) -> None:
    model, _ = load_model(trained / "run")
    state = torch.get_rng_state()
    drawn = [
        starting_weights(model.spec, model.state_dict(), seed=seed, new_head=True)["head.weight"] for seed in (1, 1, 2)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], model.state_dict()["head.weight"])
