import json
import os
import subprocess
import sys

import pytest
from config_files import derived, write_configs
from ml_collections import config_dict

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base
from cgrpo_jax.runs import config as config_lib

PACKAGED = "from cgrpo_jax.runs import base"


def test_load_finds_base_from_any_folder_and_leaves_nothing_behind(tmp_path, monkeypatch):
    first = write_configs(tmp_path / "one", fast=derived("config.seed = 3"))
    other = derived("config.num_responses = 8", base=PACKAGED)
    second = write_configs(tmp_path / "two", fast=derived("config.seed = 5"), base=other)
    monkeypatch.chdir("/")
    path, modules, finders = list(sys.path), set(sys.modules), list(sys.meta_path)
    assert config_lib.load(first / "fast.py").seed == 3
    config = config_lib.load(second / "fast.py")
    assert (config.seed, config.num_responses) == (5, 8)
    assert config_lib.load(first / "fast.py").num_responses == 7
    assert (sys.path, sys.meta_path) == (path, finders)
    assert not [name for name in set(sys.modules) - modules if name.startswith("configs")]


def test_load_finds_the_projects_files_behind_the_folders_own(tmp_path):
    configs = write_configs(tmp_path, quick=derived("config.seed = 3", base="from configs import quickstart as base"))
    assert config_lib.load(configs / "quick.py").data.kind == "chains"


def test_load_of_a_file_anywhere_that_starts_from_the_package(tmp_path):
    """Also where there is no folder `configs`, as in an installed package, and no current directory of the project."""
    file = tmp_path / "mine.py"
    file.write_text(derived("config.objective.gamma = 0.3", base=PACKAGED))
    config = config_lib.freeze(config_lib.load(file))
    assert isinstance(config, config_lib.Config) and config.objective.gamma == 0.3


def test_load_says_what_to_write_where_there_is_no_base(tmp_path, monkeypatch):
    monkeypatch.setattr(config_lib, "_PROJECT_CONFIGS", tmp_path / "nowhere")
    file = tmp_path / "mine.py"
    file.write_text(derived("pass"))
    with pytest.raises(UserError, match=r"mine.py, line 1\); write from cgrpo_jax.runs import base"):
        config_lib.load(file)


def test_load_leaves_alone_what_a_program_has_imported_itself(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "configs", own := object())
    monkeypatch.setitem(sys.modules, "configs.mine", more := object())
    file = tmp_path / "mine.py"
    file.write_text(derived("config.seed = 3", base=PACKAGED))
    assert config_lib.load(file).seed == 3
    assert (sys.modules["configs"], sys.modules["configs.mine"]) == (own, more)


def test_load_works_in_a_subfolder_and_by_a_relative_path(tmp_path, monkeypatch):
    configs = write_configs(tmp_path)
    (configs / "paper").mkdir()
    (configs / "paper" / "main.py").write_text(derived("config.seed = 2"))
    monkeypatch.chdir(configs / "paper")
    assert config_lib.load("main.py").seed == 2


def test_load_prefers_the_files_own_folder_to_an_installed_package(tmp_path):
    configs = write_configs(tmp_path / "mine", fast=derived("config.seed = 3"))
    installed = tmp_path / "site" / "configs"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    code = f"from cgrpo_jax.runs import config; assert config.load({str(configs / 'fast.py')!r}).seed == 3"
    path = os.pathsep.join([str(installed.parent), *filter(None, sys.path)])
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONPATH": path})


def test_loaded_config_is_locked(tmp_path):
    config = config_lib.load(write_configs(tmp_path) / "base.py")
    with pytest.raises(AttributeError):
        config.sed = 1


@pytest.mark.parametrize(
    "text, message",
    [
        (
            derived("config.num_response = 4"),
            r"load: num_response is no key \(did you mean num_responses\?\) \(bad.py, line 4\); fix the file$",
        ),
        (derived("config.objective.gama = 4"), r"objective.gama is no key \(did you mean objective.gamma\?\) \(bad.py"),
        (derived("config['lr'] = 4"), r"lr is no key \(did you mean optimizer.learning_rate\?\) \(bad.py, line 4\)"),
        (derived("config.template_arguments"), r"is no key \(did you mean prompts.template_arguments\?\)"),
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
    configs = write_configs(tmp_path, quickstart=derived("pass"))
    with pytest.raises(UserError, match=r"quikstart.py does not exist \(did you mean quickstart.py\?\).*base.py"):
        config_lib.load(configs / "quikstart.py")


@pytest.fixture
def config():
    """Keys of all types that a configuration may have."""
    return config_dict.ConfigDict(
        dict(
            lr=1e-6,
            num_responses=7,
            task="arithmetic",
            clip_it=True,
            buckets=(64, 128),
            scales=(0.5, 1.0),
            words=("a",),
            adam=dict(b1=0.9, b2=0.95),
            who=config_dict.placeholder(str),
            names=["a"],
        )
    ).lock()


@pytest.mark.parametrize(
    "argument, key, value",
    [
        ("--config.lr=3e-6", "lr", 3e-6),
        ("--config.lr=1", "lr", 1.0),
        ("--config.num_responses=4", "num_responses", 4),
        ("--config.task=gsm8k", "task", "gsm8k"),
        ("--config.task=a=b: c", "task", "a=b: c"),
        ("--config.clip_it=false", "clip_it", False),
        ("--noconfig.clip_it", "clip_it", False),
        ("--config.buckets=(32,)", "buckets", (32,)),
        ("--config.scales=(1, 0.25)", "scales", (1, 0.25)),
        ("--config.buckets=32,64", "buckets", (32, 64)),
        ("--config.buckets=[32,64]", "buckets", (32, 64)),
        ("--config.words=q_proj,v", "words", ("q_proj", "v")),
        ("--config.words=[q_proj, 'v',]", "words", ("q_proj", "v")),
        ("--config.words=a b", "words", ("a b",)),
        ("--config.words=('a,b',)", "words", ("a,b",)),
        ("--config.adam.b1=0.8", "adam.b1", 0.8),
        ("--config.who=policy", "who", "policy"),
    ],
)
def test_override_sets_the_key_and_keeps_its_type(config, argument, key, value):
    before = config_lib.flatten(config.to_dict())
    assert config_lib.override(config, [argument]) == []
    after = config_lib.flatten(config.to_dict())
    assert after == before | {key: value}
    assert type(after[key]) is type(value)


def test_override_takes_a_list_after_a_space(config):
    assert config_lib.override(config, ["--config.words", "q,v", "--config.buckets", "8,9", "more"]) == ["more"]
    assert (config.words, config.buckets) == (("q", "v"), (8, 9))


def test_override_takes_a_value_after_a_space_and_returns_positional_arguments(config):
    assert config_lib.override(config, ["gsm8k", "--config.lr", "2e-6", "more"]) == ["gsm8k", "more"]
    assert config.lr == 2e-6


@pytest.mark.parametrize(
    "argument, message",
    [
        ("--config.lr=abc", r"--config.lr=abc is not a number; it is now 1e-06"),
        ("--config.num_responses=1.5", r"--config.num_responses=1.5 is not an int; it is now 7"),
        ("--config.clip_it=maybe", r"is not true or false; it is now True"),
        ("--config.num_response=4", r"unknown config key .*did you mean --config.num_responses\?"),
        ("--noconfig.clip_ti", r"unknown config key .*did you mean --config.clip_it\?"),
        ("--config.adam.b3=4", r"unknown config key --config.adam.b3 .*the keys of adam are b1, b2"),
        ("--config.zzz=4", r"unknown config key --config.zzz; --help lists every key"),
        ("--config.=4", r"unknown config key --config.;"),
        ("--config.lr.x=4", r"lr is a value, not a group"),
        ("--config.adam={'b1': 1}", r"adam is a group; set one of its keys: b1, b2"),
        ("--config.names=b", r"names can't be set from the command line"),
        ("--config.buckets=abc", r"buckets: 'abc' is not an int; it is now \(64, 128\)"),
        ("--config.buckets=(1.5, 2)", r"buckets: 1.5 is not an int"),
        ("--config.buckets=1,x", r"buckets: 'x' is not an int"),
        ("--config.scales=(True,)", r"scales: True is not a number"),
        ("--config.lr", r"Missing value for flag --config.lr"),
    ],
)
def test_override_rejects_in_one_line(config, argument, message):
    with pytest.raises(UserError, match=message):
        config_lib.override(config, [argument])


def test_freeze_gives_the_typed_configuration():
    changed = base.get_config()
    changed.update_from_flattened_dict({"objective.gamma": 0.3, "sampling.stop": ("a", "b"), "seed": 4})
    frozen = config_lib.freeze(changed)
    assert (frozen.objective.gamma, frozen.sampling.stop, frozen.seed) == (0.3, ("a", "b"), 4)
    assert type(frozen) is config_lib.Config and config_lib.freeze(frozen) is frozen
    with pytest.raises(AttributeError):
        frozen.seed = 1
    with pytest.raises(AttributeError):
        frozen.objective.gamma = 1.0
    assert frozen != config_lib.Config() and hash(frozen) == hash(config_lib.freeze(changed))


def test_freeze_turns_inner_lists_into_tuples():
    changed = base.get_config()
    changed.critique.schedule = ([0, "cot"],)
    assert config_lib.freeze(changed).critique.schedule == ((0, "cot"),)


@pytest.mark.parametrize("given", [("q_proj", "v_proj"), ("q", "v_proj", "v")])
def test_freeze_turns_other_spellings_into_our_own(given):
    changed = base.get_config()
    changed.lora.targets = given
    assert config_lib.freeze(changed).lora.targets == ("q", "v")
    assert config_lib.replaced(config_lib.Config(), {"lora.targets": ("all-linear",)}) == config_lib.Config()


def test_freeze_refuses_other_keys():
    unlocked = base.get_config().unlock()
    unlocked.gama = 0.1
    with pytest.raises(UserError, match="has gama, which is no key; start it from base.get_config()"):
        config_lib.freeze(unlocked)
    with pytest.raises(UserError, match=r"has no seed, num_iterations, .*; start it from base.get_config\(\)"):
        config_lib.freeze(config_dict.ConfigDict({"lr": 1.0}))


def test_replaced_has_other_values_and_takes_no_other_keys():
    before = config_lib.Config()
    after = config_lib.replaced(before, {"refine.kind": "none", "critic.endpoint.model": "m"})
    assert (after.refine.kind, after.critic.endpoint.model, before.refine.kind) == ("none", "m", "policy")
    with pytest.raises(KeyError):
        config_lib.replaced(before, {"refine.kind": "none", "gama": 1})


def test_value_of_a_dotted_key():
    assert config_lib.value(config_lib.Config(), "critic.endpoint.timeout") == 60.0
    assert config_lib.value(config_lib.Config(), "seed") == 0


def test_to_json_survives_json(config):
    config.scales = (float("inf"), 0.5)
    values = config_lib.to_json(config)
    assert json.loads(json.dumps(values, allow_nan=False)) == values
    assert values["buckets"] == [64, 128]
    assert values["scales"] == ["inf", 0.5]
    assert values["adam"] == {"b1": 0.9, "b2": 0.95}
    assert values["who"] is None


def test_to_json_of_the_typed_configuration_is_that_of_the_one_it_was_frozen_from():
    changed = base.get_config()
    changed.critique.schedule = ((0, "cot"),)
    values = config_lib.to_json(config_lib.freeze(changed))
    assert json.loads(json.dumps(values, allow_nan=False)) == values == config_lib.to_json(changed)


def test_to_json_names_the_key_that_has_no_json_form():
    with pytest.raises(UserError, match=r"adam.dtype holds a type"):
        config_lib.to_json(config_dict.ConfigDict({"adam": {"dtype": int}}))


def test_differences_are_dotted_and_sorted():
    old = {"lr": 1e-6, "opt": {"b1": 0.9, "b2": 0.95}, "num_iterations": 10, "flag": True, "same": [1]}
    new = {"lr": 3e-6, "opt": {"b1": 0.8}, "num_iterations": 20, "flag": 1, "same": [1], "task": "x"}
    assert config_lib.differences(old, new, ignore=("num_iterations",)) == [
        "flag: True -> 1",
        "lr: 1e-06 -> 3e-06",
        "opt.b1: 0.9 -> 0.8",
        "opt.b2: 0.95 -> (absent)",
        "task: (absent) -> 'x'",
    ]
    assert config_lib.differences(old, old) == []
    assert "opt.b1: 0.9 -> 0.8" not in config_lib.differences(old, new, ignore=("opt",))
