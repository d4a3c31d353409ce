"""What critics are made of besides their keys."""

import dataclasses
import json

import pytest
import rollout_cases
import tiny_run

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Stage
from cgrpo_jax.runs import build_inference, stages, validate


def written(folder, rows):
    folder.mkdir()
    rollouts.write(folder / rollouts.file_name(0), rows, iteration=0, spell=lambda ids: json.dumps(ids.tolist()))
    return str(folder)


def test_other_critiques_are_those_of_wrong_responses_in_rows_that_are_there(tmp_path):
    where = written(tmp_path / "rows", rollout_cases.make())
    config = tiny_run.config({"critique.corruption": "another", "critique.others": where})
    of = stages.of_training(config)
    assert build_inference.make_critic(config, None, kind="indicative", stages=of).others == ("wrong",)
    (digest,) = build_inference.others_digest(config, stages.of_training(config)).values()
    assert digest.startswith("1 files (")
    assert build_inference.others_digest(config, stages.of_evaluation(config)) == {}
    assert build_inference.make_critic(tiny_run.config({}), None, kind="indicative", stages=of).others == ()


def test_a_critique_that_calls_a_right_response_wrong_is_none_of_a_wrong_one(tmp_path):
    rows = rollout_cases.make()
    right = [one if one.rollout.stage != Stage.RESPONSE else graded_again(one, 1.0) for one in rows]
    for name, made in {"wrong": rows, "right": right}.items():
        where = written(tmp_path / name, made)
        config = tiny_run.config({"critique.corruption": "another", "critique.others": where})
        if name == "wrong":
            assert build_inference.others_digest(config, stages.of_training(config))
            continue
        with pytest.raises(UserError, match="no critique of a wrong response"):
            build_inference.others_digest(config, stages.of_training(config))


def graded_again(row, reward):
    return dataclasses.replace(row, rollout=row.rollout.replace(reward=reward))


@pytest.mark.parametrize("corruption", ["inverted", "shuffled", "another"])
@pytest.mark.parametrize(
    "make, changes",
    [
        (stages.of_training, {"refine.kind": "none", "critique.when": "all"}),
        (stages.of_training, {"refine.kind": "solution", "critique.when": "all"}),
        (stages.of_evaluation, {}),
        (stages.of_finetuning, {}),
        (stages.of_collection, {}),
        (stages.of_diagnosis, {}),
        (stages.of_test_time_refinement, {"critique.kind": "cot"}),
    ],
)
def test_nothing_is_made_wrong_that_no_refinement_of_training_sees(make, changes, corruption):
    """Nor are the rows read that another critique would be of: there are none."""
    config = tiny_run.config(changes | {"critique.corruption": corruption, "critique.others": "nowhere"})
    critic = build_inference.make_critic(config, None, kind="indicative", stages=make(config))
    assert (critic.corruption, critic.others) == ("none", ())
    assert build_inference.others_digest(config, make(config)) == {}


@pytest.mark.parametrize("kind", ["alone", "added"])
def test_a_teacher_sees_what_is_made_wrong(kind):
    changes = {"distil.kind": kind, "refine.kind": "none", "critique.when": "all", "critique.corruption": "inverted"}
    config = tiny_run.config(changes)
    critic = build_inference.make_critic(config, None, kind="indicative", stages=stages.of_training(config))
    assert critic.corruption == "inverted"


def test_training_and_a_sample_show_what_is_made_wrong():
    config = tiny_run.config({"critique.corruption": "inverted"})
    for make in (stages.of_training, stages.of_sample):
        critic = build_inference.make_critic(config, None, kind="indicative", stages=make(config))
        assert critic.corruption == "inverted"


def test_rows_without_such_critiques_are_refused(tmp_path):
    rows = [row for row in rollout_cases.make() if row.rollout.stage == Stage.RESPONSE]
    where = written(tmp_path / "rows", rows)
    config = tiny_run.config({"critique.corruption": "another", "critique.others": where})
    with pytest.raises(UserError, match="has no critique of a wrong response that says so; give rows that hold some"):
        build_inference.others_digest(config, stages.of_training(config))


def test_another_needs_rows():
    with pytest.raises(UserError, match='critique.corruption "another" shows other critiques; give rows that hold'):
        validate.check(tiny_run.config({"critique.corruption": "another"}))
