"""What critics are made of besides their keys."""

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


def test_rows_without_such_critiques_are_refused(tmp_path):
    rows = [row for row in rollout_cases.make() if row.rollout.stage == Stage.RESPONSE]
    where = written(tmp_path / "rows", rows)
    config = tiny_run.config({"critique.corruption": "another", "critique.others": where})
    with pytest.raises(UserError, match="has no critique of a wrong response; give rows that hold some"):
        build_inference.others_digest(config, stages.of_training(config))


def test_another_needs_rows():
    with pytest.raises(UserError, match='critique.corruption "another" shows other critiques; give rows that hold'):
        validate.check(tiny_run.config({"critique.corruption": "another"}))
