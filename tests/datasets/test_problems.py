"""Which columns the training questions and the held-out ones need."""

import json
import types

import pytest

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.datasets import problems as problems_lib
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem


def stored(tmp_path, *, train, held_out, solution_key="worked"):
    for name, row in (("train", train), ("eval", held_out)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    return problems_lib.Stored(
        kind="jsonl", train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / "eval.jsonl"), train_split="train",
        eval_split="test", tfds_dir=None, question_key="q", answer_key="a", solution_key=solution_key,
        answer_pattern=None, num_train=0, num_eval=0,
    )  # fmt: skip


def test_held_out_questions_need_no_solution(tmp_path):
    source = stored(tmp_path, train={"q": "1+1", "a": 2, "worked": "1+1=2"}, held_out={"q": "2+2", "a": 4})
    (training,), (held_out,) = problems_lib._stored(source)
    assert (training.solution, held_out.solution, held_out.answer) == ("1+1=2", None, "4")


def test_training_questions_need_the_solution_that_is_named(tmp_path):
    row = {"q": "1+1", "a": 2}
    with pytest.raises(UserError, match=r"column 'worked' is missing \(there are: q, a\)"):
        problems_lib._stored(stored(tmp_path, train=row, held_out=row | {"worked": "1+1=2"}))


def test_a_held_out_solution_that_is_there_is_read_as_earlier_versions_did(tmp_path):
    """Their runs compare the hash of all that is read, and would not resume."""
    row = {"q": "1+1", "a": 2, "worked": "1+1=2"}
    training, held_out = problems_lib._stored(stored(tmp_path, train=row, held_out=row))
    assert fingerprints.of_problems([one.replace(source="") for one in held_out]) == fingerprints.of_problems(
        [one.replace(source="") for one in training]
    )
    _, (held_out,) = problems_lib._stored(stored(tmp_path, train=row, held_out=row | {"worked": None}))
    assert held_out.solution is None
    with pytest.raises(UserError, match="column 'a'"):
        problems_lib._stored(stored(tmp_path, train=row, held_out=row | {"a": None}))


def test_critiques_of_rubrics_need_rubrics():
    limits = types.SimpleNamespace(grader="judge")
    judged = [Problem(0, "Who?", '["names her"]', source="a"), Problem(1, "What?", "- is short", grader="judge")]
    problems_lib._check_rubrics(judged, limits)
    with pytest.raises(UserError) as refused:
        problems_lib._check_rubrics([*judged, Problem(6, "1+1", "2", source="b", grader="math")], limits)
    assert str(refused.value) == (
        "training questions: row 7 of b is graded by 'math', but critique.kind \"checklist\" names the items of a "
        "rubric; leave the row out, or use another kind."
    )
