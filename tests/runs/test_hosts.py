"""What processes must have alike is taken from the configuration and from the files that a run reads."""

import shutil

import pytest
import rollout_cases
import tiny_run

from cgrpo_jax import sharding
from cgrpo_jax.datasets import fingerprints, rollouts
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards.sandbox.modules import Modules
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import hosts, keys
from cgrpo_jax.runs import settings as settings_lib
from cgrpo_jax.runtime import agreement

PATHS = [name for name, key, _ in keys.items(config_lib.Config()) if key.is_path]


def differ(a, b):
    return agreement.differences([hosts.of_config(tiny_run.config(one)) for one in (a, b)])


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("sampling.temperature", 0.5, "0.5 on process 1, 1.0 on process 0"),
        ("optimizer.learning_rate", 0.5, "0.5 on process 1, 0.0002 on process 0"),
        ("questions_per_iteration", 8, "8 on process 1, 4 on process 0"),
        ("mesh.tensor", 2, "2 on process 1, 1 on process 0"),
        ("grader.kind", "exact", '"exact" on process 1, "trace" on process 0'),
    ],
)
def test_every_key_must_be_the_same(key, value, words):
    assert differ({}, {key: value}) == [f"{key} is {words}"]


def test_no_key_is_left_out():
    values = hosts.of_config(config_lib.Config())
    assert values.keys() == {name for name, _, _ in keys.items(config_lib.Config())}


@pytest.mark.parametrize("key", [key for key in PATHS if key not in ("rewards", "code.modules")])
def test_a_file_may_lie_elsewhere_but_has_one_name(key):
    here, there = "/mnt/a/one.jsonl,/mnt/a/two.jsonl", "/disk/one.jsonl,/disk/two.jsonl"
    assert not differ({key: here}, {key: there})
    assert len(differ({key: here}, {key: "/mnt/a/one.jsonl"})) == 1
    assert len(differ({key: here}, {key: ""})) == 1


def test_so_may_each_of_several_modules():
    here, there = ("/mnt/a/hydro.py", "/mnt/a/pumps"), ("/disk/hydro.py", "/disk/pumps")
    assert not differ({"code.modules": here}, {"code.modules": there})
    assert len(differ({"code.modules": here}, {"code.modules": there[:1]})) == 1


def test_so_may_each_of_several_functions():
    here, there = ("math", "/mnt/a/style.py:short"), ("math", "/disk/style.py:short")
    assert not differ({"rewards": here}, {"rewards": there})
    assert len(differ({"rewards": here}, {"rewards": ("math", "/disk/style.py:long")})) == 1


def test_the_paths_are_those_keys():
    assert PATHS == [
        "rewards",
        "gate",
        "grader.kind",
        "code.modules",
        "critique.others",
        "critic.folder",
        "refiner.folder",
        "model.folder",
        "model.tokenizer",
        "model.init",
        "data.train",
        "data.eval",
        "data.tfds_dir",
        "data.pass_rates",
        "finetune.rows",
        "finetune.eval_rows",
        "collect.rows",
    ]


def test_questions_and_functions_by_what_they_hold(tmp_path):
    def of(folder, answer="5", reward="1.0"):
        folder.mkdir(exist_ok=True)
        file = folder / "mine.py"
        file.write_text(f"def reward(completions, **kw):\n    return [{reward}] * len(completions)\n")
        problems = {"training": [Problem(0, "2+3", answer)], "held-out": []}
        return hosts.of_inputs(problems, fingerprints.of_all(f"{file}:reward", problems))

    one = of(tmp_path / "a")
    assert not agreement.differences([one, of(tmp_path / "b")])
    (line,) = agreement.differences([one, of(tmp_path / "b", answer="6")])
    assert line.startswith("the hash of the training questions is ")
    (line,) = agreement.differences([one, of(tmp_path / "b", reward="0.5")])
    assert line.startswith("the hash of the file of mine.py:reward is ")


def test_other_critiques_are_among_what_a_run_reads(tmp_path):
    """Else a run would go on with other rows, and hosts would show their refinements different ones."""

    def of(name, changes=None, rows=()):
        folder = tmp_path / name
        folder.mkdir()
        rows = [*rollout_cases.make(), *rows]
        rollouts.write(folder / rollouts.file_name(0), rows, iteration=0, spell=rollout_cases.spell)
        shown = {"critique.corruption": "another", "critique.others": str(folder)} | (changes or {})
        config = tiny_run.config(shown, **{"grader.kind": "exact"})
        settings = settings_lib.run_settings(config, sharding.one_device())
        return hosts.agreed_inputs(config, settings, {}, Modules(), checkpoints=None, step=None)

    one, same, another = of("a"), of("b"), of("c", rows=[rollout_cases.verdict()])
    assert one == same and fingerprints.changed(one, another) == ["what critique.others holds"]
    assert fingerprints.changed(one, of("d", {"critique.corruption": "inverted"})) == ["what critique.others holds"]


def test_a_model_by_its_files(tmp_path):
    folders = [tmp_path / name / "model" for name in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
        for name in ("config.json", "tokenizer.json", "model.safetensors", "README.md"):
            (folder / name).write_text(name)

    def found():
        return agreement.differences(
            [
                hosts.of_models(tiny_run.config({"model.folder": str(folder)}), {"critic": str(folder)})
                for folder in folders
            ]
        )

    (folders[1] / "README.md").write_text("of another author")
    assert not found()
    (folders[1] / "model.safetensors").write_text("model.Safetensors")
    assert [line.split(" is ")[0] for line in found()] == [
        "the model's model/model.safetensors",
        "the critic's model/model.safetensors",
    ]
    shutil.copy(folders[0] / "model.safetensors", folders[1])
    (folders[1] / "tokenizer.json").unlink()
    assert found()[0].startswith("the model's model/tokenizer.json is absent on process 1, ")


def test_a_checkpoint_by_its_step_and_files(tmp_path):
    for step in (1, 2):
        (tmp_path / "checkpoints" / str(step) / "params").mkdir(parents=True)
        (tmp_path / "checkpoints" / str(step) / "params" / "d").write_text("weights")

    def found(step=None):
        return hosts.of_checkpoint(tmp_path, step, "weights")["weights"]

    assert found().startswith("step 2, 1 files (") and found(1).startswith("step 1, ")
    before = found()
    (tmp_path / "checkpoints" / "2" / "params" / "d").write_text("Weights")
    assert found() != before
