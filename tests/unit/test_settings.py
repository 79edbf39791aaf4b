"""The project file: presets, assignments, and refusals that name the nearest key."""

from __future__ import annotations

from pathlib import Path

import pytest

from unetflow.errors import InputError
from unetflow.settings import load_settings, make_settings, with_values


def test_defaults_are_the_numbers_of_the_paper() -> None:
    settings = make_settings({})
    assert (settings.prepare.w0, settings.prepare.sigma) == (10.0, 5.0)
    assert (settings.prepare.elastic_grid, settings.prepare.elastic_sigma) == (3, 10.0)
    assert (settings.model.depth, settings.model.base_channels, settings.model.padding) == (4, 64, "valid")
    assert (settings.train.optimizer, settings.train.momentum) == ("sgd", 0.99)


def test_the_keras_preset_fills_what_is_not_said_and_explicit_keys_win() -> None:
    settings = make_settings({"model": {"preset": "keras", "upsample": "transpose"}})
    assert (settings.model.padding, settings.model.head, settings.model.upsample) == ("same", "sigmoid", "transpose")
    assert (settings.train.optimizer, settings.train.learning_rate) == ("adam", 1e-4)


@pytest.mark.parametrize(
    ("values", "hint"),
    [
        ({"prepare": {"w_0": 5}}, "did you mean 'w0'"),
        ({"trian": {}}, "did you mean 'train'"),
        ({"data": [{"raw": "a", "labels": "b", "class_maps": {}}]}, "did you mean 'class_map'"),
        ({"segment": {"zzz": 1}}, "known are"),
        ({"data": [{"raw": "a"}]}, "data.0.labels is needed"),
        ({"folder": "x"}, "unknown key 'folder'"),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(values: dict[str, object], hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        make_settings(values)


def test_assignments_win_over_the_file_and_may_be_plain_strings(tmp_path: Path) -> None:
    file = tmp_path / "unetflow.toml"
    file.write_text("[train]\nsteps = 5\n")
    settings = load_settings(file, ["train.steps=7", "run.dir=elsewhere", "model.pool=[[1,2],[2,2]]", "model.depth=2"])
    assert settings.train.steps == 7
    assert settings.run_folder == tmp_path / "elsewhere"
    assert settings.model.pool == ((1, 2), (2, 2))


@pytest.mark.parametrize("text", ["steps=5", "train.steps", ".a=1"])
def test_an_assignment_without_section_or_value_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"section\.key=value"):
        load_settings(None, [text])


def test_a_file_that_is_no_toml_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "unetflow.toml"
    file.write_text("[train\n")
    with pytest.raises(InputError, match="must be TOML"):
        load_settings(file)


def test_urls_stay_and_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    settings = make_settings({}, folder=str(tmp_path))
    assert settings.resolve("s3://bucket/a.zarr") == "s3://bucket/a.zarr"
    assert settings.resolve("a.zarr") == str(tmp_path / "a.zarr")


def test_new_values_keep_what_was_never_set_unset() -> None:
    settings = with_values(make_settings({"model": {"preset": "keras"}}), {"run": {"seed": 4}})
    assert (settings.run.seed, settings.model.padding) == (4, "same")


def test_memory_is_written_with_units() -> None:
    assert make_settings({"segment": {"memory": "1.5 GiB"}}).segment.memory == 3 * 2**29
    with pytest.raises(InputError, match="memory"):
        make_settings({"segment": {"memory": "much"}})
