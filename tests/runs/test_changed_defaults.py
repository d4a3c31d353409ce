"""Runs from before a default changed go on as they began, and keys that nothing reads are no other run."""

import json

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import base, cli, old_keys, resume_policy, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir

FLAGS = {"config": cli.CONFIG, "workdir": cli.WORKDIR}
FILE = "from configs import base\n\ndef get_config():\n    return base.get_config()\n"


def of_then(**changes):
    """Returns the defaults as an older version's config.json has them."""
    values = config_lib.to_json(config_of(**{"objective__clip_refined": True} | changes))
    del values["objective"]["refined_ratio"]
    return values


def config_of(**changes):
    return config_lib.replaced(config_lib.Config(), {key.replace("__", "."): value for key, value in changes.items()})


@pytest.fixture
def begun(tmp_path):
    """A run of an older version with a checkpoint, and a file that has the defaults of today."""
    run = RunDir(tmp_path / "run")
    (run.checkpoints / "3").mkdir(parents=True)
    run.config.write_text(json.dumps(of_then()))
    (tmp_path / "mine.py").write_text(FILE)
    return run


def given(run, *flags):
    file = run.path.with_name("mine.py")
    return cli.parse([f"--config={file}", f"--workdir={run.path}", *flags], flags=FLAGS)["config"]


def opened(run, config):
    return RunDir(run.path).open(config_lib.to_json(config), ignore=resume_policy.TRAINING)


def test_the_table_has_the_defaults_of_today():
    now = config_lib.flatten(base.get_config().to_dict())
    for key, one in old_keys.CHANGED_DEFAULTS.items():
        assert now[key] == one.now != one.was and one.since in now


def test_a_run_of_then_goes_on_with_the_default_of_then(begun, capsys):
    config = given(begun)
    assert config.objective.clip_refined and opened(begun, config)
    assert "objective.clip_refined is True, as by default when the run in" in capsys.readouterr().err


def test_it_still_does_after_it_was_made_longer(begun):
    for number in (200, 300):
        config = given(begun, f"--config.num_iterations={number}")
        assert config.objective.clip_refined and opened(begun, config)
        kept = old_keys.translate(json.loads(begun.config.read_text()))
        assert kept == config_lib.to_json(config)


def test_a_flag_that_asks_for_the_default_of_today_is_another_run(begun):
    config = given(begun, "--config.objective.clip_refined=false")
    with pytest.raises(UserError, match=r"another config \(objective.clip_refined: True -> False\)"):
        opened(begun, config)


def test_a_run_of_today_has_what_it_says(begun):
    begun.config.write_text(json.dumps(config_lib.to_json(config_of(objective__clip_refined=True))))
    with pytest.raises(UserError, match=r"another config \(objective.clip_refined: True -> False\)"):
        opened(begun, given(begun))


def test_without_a_run_the_file_stands(begun, tmp_path):
    assert not given(RunDir(tmp_path / "other")).objective.clip_refined
    begun.config.write_text("{")
    assert not given(begun).objective.clip_refined


def test_what_neither_configuration_reads_is_no_difference(tmp_path):
    """GRPO's arms, whose refinements' keys nothing reads."""
    plain = {"refine__kind": "none"}
    run = RunDir(tmp_path)
    (run.checkpoints / "3").mkdir(parents=True)
    run.config.write_text(json.dumps(config_lib.to_json(config_of(**plain, objective__gamma=0.5))))
    assert opened(run, config_of(**plain))
    with pytest.raises(UserError, match="refine.kind: 'none' -> 'policy'"):
        opened(run, config_of())


def test_a_key_is_never_read_where_all_say_so():
    none, policy = (config_lib.to_json(config_of(refine__kind=kind)) for kind in ("none", "policy"))
    assert "objective.gamma" in validate.never_read(none) and "seed" not in validate.never_read(none)
    assert "objective.gamma" not in validate.never_read(none, policy)
    assert "objective.gamma" not in validate.never_read({"objective": {"gamma": 1.0}})  # what decides it is not there
    assert "critique.reveals_value" in validate.never_read(policy)  # whose schedule is a list in JSON
