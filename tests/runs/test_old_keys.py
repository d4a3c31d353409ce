"""What the keys were called before the configuration had sections: all of them are still understood."""

import json
import pathlib

import paths
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation.resumable_results import FORMAT, Results
from cgrpo_jax.runs import base, old_keys, resume_policy
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir

# The configuration of a run from before, as its config.json holds it: every key with its default.
BEFORE = json.loads(pathlib.Path(__file__).with_name("config_of_before.json").read_text())
FLAT = config_lib.flatten(BEFORE)
NOW = config_lib.flatten(config_lib.to_json(base.get_config()))
CHANGED = {"objective.clip_refined": True}  # defaults that were others


def of_before(**changes):
    """Returns the defaults that a run of before has, with changes."""
    config = base.get_config()
    config.update_from_flattened_dict(CHANGED | {key.replace("__", "."): value for key, value in changes.items()})
    return config


def other(key, value):
    """Returns another value of an old key, as JSON has it."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, list):
        return {"critique_schedule": [[0, "cot"]], "profile_steps": [3], "stop": ["x"]}.get(key, value[:1])
    return value + "x"


def as_flag(value):
    return f"({''.join(f'{one!r},' for one in map(tuple_of, value))})" if isinstance(value, list) else value


def tuple_of(value):
    return tuple(value) if isinstance(value, list) else value


def test_the_table_is_of_the_146_keys_and_all_of_them_are_keys_now():
    assert len(FLAT) == 146
    gone = old_keys.GONE.keys() & FLAT.keys()
    assert gone == {"samples_per_iteration"}
    assert old_keys.RENAMED.keys() <= FLAT.keys()
    assert {old_keys.RENAMED.get(key, key) for key in FLAT.keys() - gone} <= NOW.keys()
    assert len({old_keys.RENAMED.get(key, key) for key in FLAT.keys() - gone}) == 145
    assert set(old_keys.RENAMED_SINCE.values()) <= NOW.keys()
    assert not (old_keys.RENAMED.keys() | old_keys.RENAMED_SINCE.keys() | old_keys.GONE.keys()) & NOW.keys()


def test_an_old_configuration_is_todays():
    translated = old_keys.translate(BEFORE)
    assert config_lib.flatten(translated) == NOW | CHANGED
    assert old_keys.translate(translated) == translated
    assert not config_lib.differences(BEFORE, config_lib.to_json(of_before()))


@pytest.mark.parametrize("key", FLAT)
def test_an_old_value_is_found_in_a_folder_a_flag_and_a_file(key, tmp_path, capsys):
    value = other(key, FLAT[key])
    gone = key in old_keys.GONE
    new = old_keys.RENAMED.get(key, key)
    # an old folder
    changed = json.loads(json.dumps(BEFORE))
    *path, last = key.split(".")
    inner = changed[path[0]] if path else changed
    inner[last] = value
    found = config_lib.flatten(old_keys.translate(changed))
    expected = {"critic_sees_answer": "answer"}.get(key, value)
    expected = ({} if gone else {new: expected}) | {"critic_folder": {"critic.kind": "folder"}}.get(key, {})
    expected |= {"http_critic.url": {"critic.kind": "endpoint"}}.get(key, {})
    assert found == NOW | CHANGED | expected
    # an old flag
    config = base.get_config()
    config_lib.override(config, [f"--config.{key}={as_flag(value)}"])
    assert config_lib.flatten(config_lib.to_json(config)) == NOW | expected
    err = capsys.readouterr().err
    said = f"--config.{key} is gone: {old_keys.GONE[key]}" if gone else f"--config.{key} is now --config.{new}"
    assert (said in err and err.count("\n") == 1) if gone or key != new else not err
    # an old file
    file = tmp_path / "mine.py"
    start = "from cgrpo_jax.runs import base\n\ndef get_config():\n    c = base.get_config()\n"
    file.write_text(f"{start}    c.{key} = {tuple_of(value)!r}\n    return c\n")
    if key == new and not gone:
        assert config_lib.value(config_lib.freeze(config_lib.load(file)), key) == tuple_of(value)
    else:
        with pytest.raises(UserError) as caught:
            config_lib.load(file)
        text = str(caught.value)
        said = f"{key} is {'gone' if gone else f'now {new}'} (mine.py, line 5)"
        assert f"config file {file} fails to load: {said}" in text and "\n" not in text


@pytest.mark.parametrize(
    "given, found, hint",
    [
        (["--config.gamma", "0.2"], ["--config.objective.gamma", "0.2"], "gamma is now --config.objective.gamma"),
        (["--config.samples.every=3"], ["--config.rollouts.every=3"], "samples.every is now --config.rollouts.every"),
        (
            ["--config.samples.per_iteration", "3", "--config.seed=1"],
            ["--config.seed=1"],
            "samples.per_iteration is gone",
        ),
        (["--noconfig.clip_initial"], ["--noconfig.objective.clip_initial"], "--noconfig.clip_initial is now --noc"),
        (["--config.critic_sees_answer"], ["--config.critic.sees=answer"], "is now --config.critic.sees=answer"),
        (["--config.critic_sees_answer=false"], ["--config.critic.sees=nothing"], "--config.critic.sees=nothing"),
        (["--noconfig.critic_sees_answer"], ["--config.critic.sees=nothing"], "--config.critic.sees=nothing"),
        (
            ["--config.critic_folder", "x"],
            ["--config.critic.folder", "x", "--config.critic.kind=folder"],
            "--config.critic_folder is now --config.critic.folder, with --config.critic.kind=folder",
        ),
        (
            ["--config.critic_folder=", "--config.http_critic.url=u"],
            ["--config.critic.folder=", "--config.critic.endpoint.url=u", "--config.critic.kind=endpoint"],
            "--config.http_critic.url is now --config.critic.endpoint.url, with --config.critic.kind=endpoint",
        ),
        (
            ["--config.critic_folder=x", "--config.critic.kind=policy"],
            ["--config.critic.folder=x", "--config.critic.kind=policy"],
            "--config.critic_folder is now --config.critic.folder",
        ),
    ],
)
def test_flags_in_every_form(given, found, hint):
    flags, hints = old_keys.translate_flags(given)
    assert flags == found and hint in hints[-1]


def test_flags_of_today_say_nothing():
    flags = ["--config=configs/x.py", "--config.objective.gamma=0.1", "--workdir=gamma", "critique", "--config.nope=1"]
    assert old_keys.translate_flags(flags) == (flags, [])


def test_an_old_file_may_have_set_a_group(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        "from cgrpo_jax.runs import base\n\ndef get_config():\n    base.get_config().http_critic.nope = 1\n"
    )
    with pytest.raises(UserError, match="http_critic is now critic.endpoint"):
        config_lib.load(file)


def test_a_configuration_with_samples_is_todays():
    values = {"seed": 1, "samples": {"every": 3, "per_iteration": 8}}
    assert old_keys.translate(values) == {"seed": 1, "rollouts": {"every": 3}}
    assert not config_lib.differences(values, {"seed": 1, "rollouts": {"every": 3}})


def test_a_file_that_sets_samples_hears_what_to_write(tmp_path):
    start = "from cgrpo_jax.runs import base\n\ndef get_config():\n    c = base.get_config()\n"
    said = {"every": "samples.every is now rollouts.every", "per_iteration": "samples.per_iteration is gone"}
    for name, text in said.items():
        file = tmp_path / f"{name}.py"
        file.write_text(f"{start}    c.samples.{name} = 2\n    return c\n")
        with pytest.raises(UserError, match=text):
            config_lib.load(file)


def test_a_run_of_before_resumes_and_another_one_is_refused(tmp_path):
    """Its config.json stays as it is until the run resumes with another value."""
    now = config_lib.to_json(of_before())
    run = RunDir(tmp_path)
    old = json.dumps(BEFORE)
    (tmp_path / "config.json").write_text(old)
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)
    assert run.open(now, ignore=resume_policy.TRAINING)
    assert (tmp_path / "config.json").read_text() == old
    with pytest.raises(UserError, match=r"another config \(objective.gamma: 0.1 -> 0.5\)"):
        run.open(config_lib.to_json(of_before(objective__gamma=0.5)), ignore=resume_policy.TRAINING)
    config = of_before()
    config.engine.num_slots = 7
    assert run.open(config_lib.to_json(config), ignore=resume_policy.TRAINING)
    assert old_keys.translate(json.loads((tmp_path / "config.json").read_text())) == config_lib.to_json(config)


def test_no_configuration_of_the_project_has_an_old_key():
    for file in sorted(paths.CONFIGS.glob("*.py")):
        config_lib.freeze(config_lib.load(file))


def test_results_of_an_evaluation_of_before_go_on_and_others_are_refused(tmp_path):
    results = Results(tmp_path, may_change=resume_policy.EVALUATION)
    about = {"started": "2026-01-01T00:00:00", "weights": "w"}
    (tmp_path / "about.json").write_text(json.dumps({"format": FORMAT, **about, "config": BEFORE}))
    changed = of_before()
    changed.engine.num_slots = 3
    with results.open(about | {"config": config_lib.to_json(changed)}):
        pass
    changed.eval.num_samples = 16
    with pytest.raises(UserError, match=r"results of something else \(eval.num_samples: 8 -> 16\)"):
        with results.open(about | {"config": config_lib.to_json(changed)}):
            pass
