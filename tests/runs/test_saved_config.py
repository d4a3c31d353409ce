"""The configuration that a run's folder holds, and whether another one is of the same weights."""

import json
import pathlib

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, saved_config
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir

BEFORE = json.loads(pathlib.Path(__file__).with_name("config_of_before.json").read_text())
OTHER = {"objective.gamma": 0.5, "lora.targets": ("q",), "critique.schedule": ((3, "cot"),), "eval.k": (1, 4)}


def written(folder, values):
    (folder / "checkpoints").mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return RunDir(folder)


def config_of(**changes):
    return config_lib.replaced(config_lib.Config(), {key.replace("__", "."): value for key, value in changes.items()})


def test_what_is_read_is_what_the_run_had(tmp_path):
    config = config_lib.replaced(config_lib.Config(), OTHER)
    written(tmp_path, config_lib.to_json(config))
    found = saved_config.read(tmp_path)
    assert config_lib.freeze(found) == config
    config_lib.override(found, ["--config.objective.gamma=0.7"])
    assert found.objective.gamma == 0.7
    with pytest.raises(AttributeError):
        found.gama = 1.0


def test_a_configuration_of_before_is_read_through_the_table(tmp_path):
    written(tmp_path, BEFORE | {"gamma": 0.5, "critic_sees_answer": True})
    found = config_lib.freeze(saved_config.read(tmp_path))
    assert found == config_of(objective__gamma=0.5, objective__clip_refined=True, critic__sees="answer")


def test_a_key_that_an_earlier_version_did_not_have_has_its_default(tmp_path):
    values = config_lib.to_json(base.get_config())
    del values["diagnosis"], values["seed"]
    written(tmp_path, values)
    assert config_lib.freeze(saved_config.read(tmp_path)) == config_lib.Config()


def test_infinities_are_numbers_again(tmp_path):
    written(tmp_path, {"optimizer": {"max_grad_norm": "inf"}})
    assert saved_config.read(tmp_path).optimizer.max_grad_norm == float("inf")


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "config.json is not valid JSON"),
        ("[]", "where an object, {...}, must be"),
        ('{"nope": 1}', "has nope, which is no key of this version; give a configuration with --config."),
        ('{"seed": "x"}', "config.json: seed can't be 'x'; restore it from a copy, or give the configuration"),
        ('{"lora": 3}', "has lora, which is no key"),
    ],
)
def test_a_damaged_configuration_is_one_line(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(UserError) as caught:
        saved_config.read(tmp_path)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_where_there_is_no_run_there_is_no_configuration(tmp_path):
    assert saved_config.read(tmp_path) is None and saved_config.read(tmp_path / "nowhere") is None


LORA = {"lora__rank": 4, "model__init": "start"}

LEARNS = {"critic__train": True}
ADAPTER = LEARNS | {"critic__training__weights": "adapter"}
OWN = LEARNS | {"critic__training__weights": "model", "critic__kind": "folder", "critic__folder": "start"}


@pytest.mark.parametrize(
    "was, now, named",
    [
        (LORA, {}, ["lora.rank: 4 -> 0", "model.init: 'start' -> ''"]),
        (LORA, LORA | {"lora__alpha": 8.0, "lora__targets": ("q",)}, ["lora.alpha: 32.0 -> 8.0", "lora.targets: "]),
        (LORA, LORA | {"model__init": "other"}, ["model.init: 'start' -> 'other'"]),
        (LORA, LORA | {"warm_start__num_updates": 3}, ["warm_start.num_updates: 0 -> 3"]),
        ({"model__num_layers": 2}, {"model__num_layers": 3}, ["model.num_layers: 2 -> 3"]),
        ({"model__folder": "start"}, {"model__folder": "other"}, ["model.folder: 'start' -> 'other'"]),
        ({"model__init": "start"}, {}, ["model.init: 'start' -> ''"]),
        ({"model__tokenizer": "arithmetic"}, {"model__tokenizer": "snippets"}, ["model.tokenizer: 'arithmetic' -> "]),
        ({}, ADAPTER, ["critic.train: False -> True", "critic.training.weights: 'policy' -> 'adapter'"]),
        (ADAPTER, {}, ["critic.train: True -> False", "critic.training.weights: 'adapter' -> 'policy'"]),
        (ADAPTER, ADAPTER | {"critic__training__alpha": 8.0}, ["critic.training.alpha: 32.0 -> 8.0"]),
        (ADAPTER, ADAPTER | {"critic__training__rank": 4}, ["critic.training.rank: 16 -> 4"]),
        (ADAPTER, ADAPTER | {"critic__train": False}, ["critic.train: True -> False"]),
        (ADAPTER, LEARNS, ["critic.training.weights: 'adapter' -> 'policy'"]),
        (OWN, OWN | {"critic__folder": "other"}, ["critic.folder: 'start' -> 'other'"]),
        # What is read all the same.
        ({}, LEARNS | {"critic__training__alpha": 8.0}, []),
        (LEARNS, {}, []),
        (ADAPTER, ADAPTER | {"critic__training__beta": 0.3, "critic__temperature": 0.5}, []),
        (OWN, OWN | {"critic__folder": "./start"}, []),
        ({"critic__folder": "start"}, {"critic__folder": "other"}, []),
        ({}, {"objective__gamma": 0.3, "seed": 3, "lora__alpha": 8.0, "warm_start__num_updates": 3}, []),
        ({"model__init": "start", "model__num_layers": 2}, {"model__num_layers": 2}, []),
        ({"model__folder": "moved"}, {"model__folder": "other"}, []),
        ({"model__folder": "start"}, {"model__folder": "./start"}, []),
        (LORA | {"warm_start__num_updates": 3}, LORA | {"warm_start__num_updates": 5}, []),
    ],
)
def test_weights_are_not_read_by_another_configuration(tmp_path, monkeypatch, was, now, named):
    monkeypatch.chdir(tmp_path)
    for name in ("start", "other", "run"):
        (tmp_path / name).mkdir()
    run = written(tmp_path / "run", config_lib.to_json(config_of(**was)))
    if not named:
        saved_config.check_same_model(config_of(**now), run)
        return
    with pytest.raises(UserError) as caught:
        saved_config.check_same_model(config_of(**now), run)
    text = str(caught.value)
    assert all(one in text for one in named) and text.count(" -> ") == len(named)
    assert "are of another configuration (" in text and "leave --config and these keys out" in text


def test_a_configuration_that_can_not_be_read_is_not_compared_and_that_is_said(tmp_path, capsys):
    run = written(tmp_path, {"nope": 1})
    saved_config.check_same_model(config_of(), run)
    assert f"whether the weights in {tmp_path} are of this configuration is not known: " in capsys.readouterr().err


def test_a_folder_without_checkpoints_has_no_weights_to_mistake(tmp_path):
    run = written(tmp_path, config_lib.to_json(config_of(**LORA)))
    run.checkpoints.rmdir()
    saved_config.check_same_model(config_of(), run)
