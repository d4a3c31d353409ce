import json
import os
import subprocess
import sys

import pytest
from config_files import BASE, derived, write_configs
from ml_collections import config_dict

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib


def test_load_finds_base_from_any_folder_and_leaves_nothing_behind(tmp_path, monkeypatch):
    first = write_configs(tmp_path / "one", fast=derived("config.lr = 3e-6"))
    second = write_configs(tmp_path / "two", fast=derived("config.lr = 5e-6"), base=BASE.replace("=7", "=8"))
    monkeypatch.chdir("/")
    path, modules = list(sys.path), set(sys.modules)
    assert config_lib.load(first / "fast.py").lr == 3e-6
    config = config_lib.load(second / "fast.py")
    assert (config.lr, config.num_responses) == (5e-6, 8)
    assert sys.path == path
    assert not [name for name in set(sys.modules) - modules if name.startswith("configs")]


def test_load_works_in_a_subfolder_and_by_a_relative_path(tmp_path, monkeypatch):
    configs = write_configs(tmp_path)
    (configs / "paper").mkdir()
    (configs / "paper" / "main.py").write_text(derived("config.lr = 2e-6"))
    monkeypatch.chdir(configs / "paper")
    assert config_lib.load("main.py").lr == 2e-6


def test_load_prefers_the_files_own_folder_to_an_installed_package(tmp_path):
    configs = write_configs(tmp_path / "mine", fast=derived("config.lr = 3e-6"))
    installed = tmp_path / "site" / "configs"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    code = f"from cgrpo_jax.runs import config; assert config.load({str(configs / 'fast.py')!r}).lr == 3e-6"
    path = os.pathsep.join([str(installed.parent), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})


def test_loaded_config_is_locked(tmp_path):
    config = config_lib.load(write_configs(tmp_path) / "base.py")
    with pytest.raises(AttributeError):
        config.lrr = 1.0


@pytest.mark.parametrize(
    "text, message",
    [
        (derived("config.num_response = 4"), r'AttributeError.*"num_responses".*\(bad.py, line 4\)'),
        ("def get_config(:", r"SyntaxError.*bad.py, line 1"),
        ("import no_such_module_here", r"ModuleNotFoundError.*no_such_module_here.*line 1"),
        (derived("raise KeyError('x')"), r"KeyError: 'x'.*line 4"),
        (derived("pass", returns="dict(config)"), r"returned dict; return a ConfigDict"),
        (derived("pass", returns="None"), r"returned NoneType"),
        ("x = 1", r"no function get_config"),
    ],
)
def test_load_names_what_is_wrong_with_the_file(tmp_path, text, message):
    configs = write_configs(tmp_path, bad=text)
    with pytest.raises(UserError, match=message) as caught:
        config_lib.load(configs / "bad.py")
    assert "bad.py" in str(caught.value)


def test_load_suggests_the_file_that_exists(tmp_path):
    configs = write_configs(tmp_path, quickstart=BASE)
    with pytest.raises(UserError, match=r"quikstart.py does not exist \(did you mean quickstart.py\?\).*base.py"):
        config_lib.load(configs / "quikstart.py")


@pytest.fixture
def config(tmp_path):
    return config_lib.load(write_configs(tmp_path) / "base.py")


@pytest.mark.parametrize(
    "argument, key, value",
    [
        ("--config.lr=3e-6", "lr", 3e-6),
        ("--config.lr=1", "lr", 1.0),
        ("--config.num_responses=4", "num_responses", 4),
        ("--config.task=gsm8k", "task", "gsm8k"),
        ("--config.task=a=b: c", "task", "a=b: c"),
        ("--config.clip_initial=false", "clip_initial", False),
        ("--noconfig.clip_initial", "clip_initial", False),
        ("--config.buckets=(32,)", "buckets", (32,)),
        ("--config.scales=(1, 0.25)", "scales", (1, 0.25)),
        ("--config.optimizer.b1=0.8", "optimizer.b1", 0.8),
        ("--config.critic=policy", "critic", "policy"),
    ],
)
def test_override_sets_the_key_and_keeps_its_type(config, argument, key, value):
    before = config_lib.flatten(config.to_dict())
    assert config_lib.override(config, [argument]) == []
    after = config_lib.flatten(config.to_dict())
    assert after == before | {key: value}
    assert type(after[key]) is type(value)


def test_override_takes_a_value_after_a_space_and_returns_positional_arguments(config):
    assert config_lib.override(config, ["gsm8k", "--config.lr", "2e-6", "more"]) == ["gsm8k", "more"]
    assert config.lr == 2e-6


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.lr=abc", r"--config.lr=abc is not a number; it is now 1e-06"),
        ("--config.num_responses=1.5", r"--config.num_responses=1.5 is not an int; it is now 7"),
        ("--config.clip_initial=maybe", r"is not true or false; it is now True"),
        ("--config.num_response=4", r"unknown config key .*did you mean --config.num_responses\?"),
        ("--noconfig.clip_initail", r"unknown config key .*did you mean --config.clip_initial\?"),
        ("--config.optimizer.b3=4", r"unknown config key --config.optimizer.b3; the keys of optimizer are b1, b2"),
        ("--config.zzz=4", r"unknown config key --config.zzz; every key is in configs/base.py"),
        ("--config.=4", r"unknown config key --config.;"),
        ("--config.lr.x=4", r"lr is a value, not a group"),
        ("--config.optimizer={'b1': 1}", r"optimizer is a group; set one of its keys: b1, b2"),
        ("--config.names=b", r"names can't be set from the command line"),
        ("--config.buckets=abc", r"buckets: 'abc' is not an int; it is now \(64, 128\)"),
        ("--config.buckets=(1.5, 2)", r"buckets: 1.5 is not an int"),
        ("--config.scales=(True,)", r"scales: True is not a number"),
        ("--config.lr", r"Missing value for flag --config.lr"),
    ],
)
def test_override_rejects_in_one_line(config, argument, message):
    with pytest.raises(UserError, match=message):
        config_lib.override(config, [argument])


def test_freeze_cannot_be_changed(config):
    frozen = config_lib.freeze(config)
    with pytest.raises(AttributeError):
        frozen.lr = 1.0
    assert frozen.optimizer.b1 == 0.9


def test_to_json_survives_json(config):
    config.scales = (float("inf"), 0.5)
    for form in (config, config_lib.freeze(config)):
        values = config_lib.to_json(form)
        assert json.loads(json.dumps(values, allow_nan=False)) == values
        assert values["buckets"] == [64, 128]
        assert values["scales"] == ["inf", 0.5]
        assert values["optimizer"] == {"b1": 0.9, "b2": 0.95}
        assert values["critic"] is None


def test_to_json_names_the_key_that_has_no_json_form():
    with pytest.raises(UserError, match=r"optimizer.dtype holds a type"):
        config_lib.to_json(config_dict.ConfigDict({"optimizer": {"dtype": int}}))


def test_differences_are_dotted_and_sorted():
    old = {"lr": 1e-6, "optimizer": {"b1": 0.9, "b2": 0.95}, "num_iterations": 10, "flag": True, "same": [1]}
    new = {"lr": 3e-6, "optimizer": {"b1": 0.8}, "num_iterations": 20, "flag": 1, "same": [1], "task": "x"}
    assert config_lib.differences(old, new, ignore=("num_iterations",)) == [
        "flag: True -> 1",
        "lr: 1e-06 -> 3e-06",
        "optimizer.b1: 0.9 -> 0.8",
        "optimizer.b2: 0.95 -> (absent)",
        "task: (absent) -> 'x'",
    ]
    assert config_lib.differences(old, old) == []
    assert "optimizer.b1: 0.9 -> 0.8" not in config_lib.differences(old, new, ignore=("optimizer",))
