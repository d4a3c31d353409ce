"""Studies whose arms are recipes: what the committed ones compare, when an arm is done, and its row of the table."""

import json
import sys

import paths
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import recipes

sys.path.insert(0, str(paths.ROOT / "launch"))  # as `python launch/study.py` has it
import study as study_lib  # noqa: E402
import study_report  # noqa: E402

STUDIES = paths.CONFIGS / "studies"
ARMS = {
    "critique_finetuning": ["sft_noisy", "sft_right", "cft", "one_problem"],
    "self_training": ["plain_3", "critic_3", "plain_10", "critic_10"],
    "trained_critics": [
        "untrained", "rco", "dpco", "self_critique", "joint_shared", "joint_adapter", "joint_model",
    ],
}  # fmt: skip


def planned(name, tmp_path):
    """Returns the arms' runs of a committed study that its table is of, and those that tune it."""
    study = study_lib.load(str(STUDIES / f"{name}.py"))
    arms = [run for run in study_lib.plan(study, tmp_path) if run.is_arm]
    return study, [run for run in arms if run.seed != 100], [run for run in arms if run.seed == 100]


@pytest.mark.parametrize("name", ARMS)
def test_the_committed_studies_have_three_seeds_an_arm_and_tune_on_another(tmp_path, name):
    _, runs, tuning = planned(name, tmp_path)
    assert [run.arm for run in runs] == 3 * ARMS[name] and {run.seed for run in runs} == {0, 1, 2}
    assert tuning and all(run.arm.startswith("tune_") for run in tuning)
    for run in (*runs, *tuning):
        assert run.arguments[0] == "recipe" and run.needs and run.needs.arguments[0] == "train"
        assert all(
            one.config.model.init == str(run.needs.folder / "checkpoints")
            for one in run.steps
            if one.step.command == "collect" and not one.step.weights
        )
    rates = {run.arm.rpartition("_")[2] for run in tuning}
    assert rates == {"0.0001", "0.0003", "0.001"}


@pytest.mark.parametrize("name", ARMS)
def test_arms_differ_in_what_they_are_named_after_alone(tmp_path, name):
    """Steps of one name and command have one configuration in all arms of a study, but for these keys."""
    critics = ["critic.kind", "critic.folder", "critic.train", "critic.training.weights"]
    critics.append("critic.training.learning_rate")
    free = {
        "critique_finetuning": {
            "noisy": ["collect.num_questions", "collect.num_responses"],
            "critiques": ["collect.num_critiques"],
            "learnt": ["finetune.rows", "finetune.stages", "finetune.which", "max_response_length"],
        },
        "self_training": {
            f"{step}_{number}": ["collect.num_responses", "collect.num_critiques", "collect.num_refinements"]
            for step in ("samples", "learnt", "after")
            for number in (1, 2, 3)
        },
        "trained_critics": {
            "critic": ["finetune.loss", "finetune.stages"],
            **dict.fromkeys(("policy", "exported", "after"), critics),  # the latter two have those of the weights
        },
    }[name]
    _, runs, _ = planned(name, tmp_path)
    first = {}
    for run in (one for one in runs if one.seed == 0):
        for one in run.steps:
            step, made = one.step, config_lib.to_json(one.config)
            text = json.dumps(made).replace(str(run.folder), "RUN")  # of an arm its own rows and folders
            made = json.loads(text)
            before = first.setdefault((step.name, step.command), made)
            keys = [*free.get(step.name, []), "model.init", "collect.rows"]
            if step.name.startswith("with_"):
                keys.append("critic.folder")  # the critic that is measured
            assert config_lib.differences(before, made, keys) == [], (run.name, step.name)


def test_the_critics_of_the_joint_loop_are_measured_as_the_others_are(tmp_path):
    _, runs, _ = planned("trained_critics", tmp_path)
    for run in (one for one in runs if one.seed == 0):
        steps = {one.step.name: one for one in run.steps}
        for name in ("with_its_actor", "with_another"):
            critic = steps[name].config.critic
            exported = "untrained" if run.arm == "untrained" else "exported"
            assert (critic.kind, critic.folder, critic.train) == ("folder", str(run.folder / exported), False)
        if run.arm.startswith("joint"):
            assert steps["exported"].step.of == "critic" and steps["policy"].config.critic.train
        assert steps["with_another"].weights == run.folder / "other_actor"


RECIPE = """
from cgrpo_jax.runs.recipes import Step


def get_steps(number: int = 3):
    return [Step("samples", "collect", {"collect.num_responses": number}), Step("after", "evaluate")]
"""
CONFIG = """
from configs import quickstart


def get_config():
    return quickstart.get_config()
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "steps.py").write_text(RECIPE)
    (tmp_path / "config.py").write_text(CONFIG)
    arm = {"sees": "nothing", "overrides": {}, "headline": True, "seeds": [0]}
    return {
        "config": str(tmp_path / "config.py"),
        "settings": [{"name": "easy", "label": "Easy ones", "overrides": {}, "headline_only": False}],
        "arms": [
            arm | {"name": "few", "label": "Few", "recipe": f"{tmp_path / 'steps.py'}:number=2"},
            arm | {"name": "many", "label": "Many", "recipe": f"{tmp_path / 'steps.py'}:number=9"},
        ],
        "entropy": [],
        "warm_start": False,
        "columns": [("solved", ("samples", "solved", "value"), 1, 2), ("kept", ("after", "kept"), 1, 0)],
        "measured": "what is solved.",
    }


def finish(run, solved):
    run.folder.mkdir(parents=True)
    (run.folder / "recipe.json").write_text(json.dumps(recipes.kept_of(run.steps)))
    numbers = [{"step": one.step.name, "solved": {"value": solved}} for one in run.steps]
    (run.folder / "results.json").write_text(json.dumps(numbers))


def test_an_arm_is_done_when_its_recipe_is_and_no_other_one(study, tmp_path):
    few, many = study_lib.plan(study, tmp_path / "runs")
    assert few.arguments[:2] == ["recipe", f"--recipe={tmp_path / 'steps.py'}:number=2"]
    assert few.summary() is None
    finish(few, 0.25)
    assert few.summary()["samples"]["solved"] == {"value": 0.25} and many.summary() is None
    many.folder.mkdir(parents=True)
    for name in ("recipe.json", "results.json"):  # of the other arm
        (many.folder / name).write_text((few.folder / name).read_text())
    assert many.summary() is None
    for text in ("", "{", "[]", "{}", '{"steps": 3}', "\\0"):
        kept = (few.folder / "recipe.json").read_text()
        (few.folder / "recipe.json").write_text(text)
        assert few.summary() is None
        (few.folder / "recipe.json").write_text(kept)
        numbers = (few.folder / "results.json").read_text()
        (few.folder / "results.json").write_text(text)
        assert few.summary() is None
        (few.folder / "results.json").write_text(numbers)
    assert few.summary() is not None


def test_the_table_has_the_studys_columns(study, tmp_path):
    runs = study_lib.plan(study, tmp_path / "runs")
    for run, solved in zip(runs, (0.25, 0.5), strict=True):
        finish(run, solved)
    text = study_report.write(study, runs, tmp_path / "runs")
    assert [line for line in text.splitlines() if line.startswith("|")] == [
        "| arm | critic sees | seeds | solved | kept |",
        "| --- | --- | --- | --- | --- |",
        "| Few | nothing | 1 | 0.25 |  |",
        "| Many | nothing | 1 | 0.50 |  |",
    ]
    assert "on held-out questions: what is solved.\n\n2 of 2 runs done." in text
    study_report.write_page(study, runs, tmp_path / "runs")  # which is of runs that train
    study_report.plot_entropy(study, runs, tmp_path / "runs")
    assert not (tmp_path / "runs" / "report.html").exists() and not (tmp_path / "runs" / "entropy.png").exists()


def test_a_recipe_that_no_run_can_have_is_refused_with_the_arm(study, tmp_path):
    study["arms"][1]["recipe"] += ",nothing=1"
    with pytest.raises(UserError, match="easy/many/seed0: recipe steps.py has no argument 'nothing=1'"):
        study_lib.plan(study, tmp_path / "runs")
    study["arms"][1] |= {"recipe": str(tmp_path / "steps.py"), "overrides": {"critic.kind": "nobody"}}
    with pytest.raises(UserError, match="easy/many/seed0: .*critic.kind 'nobody' is unknown"):
        study_lib.plan(study, tmp_path / "runs")
    study_lib.plan(study, tmp_path / "runs", trains=False)  # a report is of what was there
