"""Whole runs whose grader fails: a judge that refuses or answers only some, a user's function that raises."""

import itertools
import json
import textwrap

import chat_server
import pytest
import tiny_run
from chat_server import good
from entry_points import run_evaluate, run_sample
from tiny_run import metrics, run

from cgrpo_jax.errors import GradingError
from cgrpo_jax.records import Stage

server = chat_server.server  # the fixture
YES, NO, UNREADABLE, REFUSED = good("1: yes"), good("1: no"), good("perhaps"), ({"error": {"message": "no"}}, 401)


def options(server, **more):
    changes = {
        "grader.kind": "judge",
        "judge.endpoint.url": server.url,
        "judge.endpoint.model": "judge",
        "judge.endpoint.max_attempts": 1,
    }
    return changes | {"data.num_eval": 0, "judge.max_retries": 0, "checkpoints.every": 100} | more


def replies(server, *some):
    """Answers the requests with these, over and over."""
    left = itertools.cycle(some)
    server.reply = lambda handler: handler.send(*(one if isinstance(one := next(left), tuple) else (one,)))


def test_a_judge_grades_and_what_it_is_asked_is_counted(tmp_path, server):
    replies(server, YES, NO)
    for row in metrics(run(tmp_path, options(server))):
        assert 0 < row["reward"] < 1 and row["grade/failures"] == row["judge/unreadable"] == 0
        assert row["judge/http_requests"] == row["judge/http_attempts"] == 16 + row["refine/attempted"]
        assert not [name for name in row if name.startswith("judge/http_failed")]


def test_responses_without_a_verdict_train_nothing(tmp_path, server, monkeypatch):
    seen = tiny_run.watch(monkeypatch)
    replies(server, YES, NO, UNREADABLE, REFUSED)
    (row,) = metrics(run(tmp_path, options(server, num_iterations=1, **{"refine.kind": "none"})))
    assert (row["grade/failures"], row["judge/unreadable"], row["judge/http_failed/status 401"]) == (8, 4, 4)
    assert 0 < row["reward"] < 1 and row["judge/http_requests"] == 16
    (rows,) = seen.updates
    assert len(rows) == 8 and row["rows_trained"] <= 8


def test_a_judge_that_refuses_ends_the_run_and_nothing_is_lost(tmp_path, server):
    asked = itertools.count(1)
    server.reply = lambda handler: handler.send(*(REFUSED if next(asked) > 16 else (YES,)))
    changes = options(server, num_iterations=3, **{"refine.kind": "none"})
    with pytest.raises(
        GradingError, match=r"grader 'judge' gave no verdict on any of \d+ responses \(judge failed: status"
    ):
        run(tmp_path, changes)
    assert [row["step"] for row in metrics(tmp_path)] == [0]  # which no checkpoint was due after
    replies(server, NO)
    run(tmp_path, changes)
    assert [(row["step"], row["reward"]) for row in metrics(tmp_path)] == [(0, 1.0), (1, 0.0), (2, 0.0)]


def test_a_function_that_raises_ends_the_run_and_nothing_is_lost(tmp_path):
    file = tmp_path / "reward.py"
    program = """
        import pathlib

        def reward(completions, **columns):
            with open("{calls}", "a") as file:
                file.write("called\\n")
            if len(pathlib.Path("{calls}").read_text().split()) > 4:
                raise KeyError("level")
            return [float(len(text) % 2) for text in completions]
    """
    file.write_text(textwrap.dedent(program.format(calls=tmp_path / "calls")))
    changes = {"grader.kind": f"{file}:reward", "grader.num_workers": 1, "data.num_eval": 0, "checkpoints.every": 100}
    changes |= {"refine.kind": "none"}
    with pytest.raises(
        GradingError, match=rf"^grader '{file}:reward' raised KeyError: 'level' \({file}, line 8\); fix"
    ):
        run(tmp_path / "run", changes)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0]
    file.write_text(file.read_text().replace("> 4", "> 400"))
    run(tmp_path / "run", changes)
    assert [row["step"] for row in metrics(tmp_path / "run")] == [0, 1]


def test_a_function_may_decline_every_response(tmp_path, capsys):
    """As with TRL, None is not meant for a response; with an entropy bonus rows of advantage 0 are trained as well."""
    file = tmp_path / "reward.py"
    file.write_text("def reward(completions, **columns):\n    return [None for _ in completions]\n")
    changes = {
        "grader.kind": f"{file}:reward",
        "data.num_eval": 0,
        "objective.entropy_coef": 0.01,
        "objective.old_logp": "trainer",
    }
    for row in metrics(run(tmp_path / "run", changes)):
        assert row["grade/failures"] == 16 and row["rows_trained"] == row["refine/attempted"] == 0
    assert capsys.readouterr().err.count("iteration 0 trained nothing, for no row has an advantage") == 1
    for line in tiny_run.samples(tmp_path / "run"):
        assert line["reward"] is None and set(line["rewards"]) == {None}
    responses = [row for rows in tiny_run.rollouts(tmp_path / "run") for row in rows]
    assert {(row.rollout.stage, row.dropped, row.place) for row in responses} == {(Stage.RESPONSE, "ungraded", None)}


def test_an_evaluation_says_what_has_no_verdict(tmp_path, server, capsys):
    replies(server, YES, REFUSED)
    folder = run(tmp_path, options(server, num_iterations=0))
    changes = options(server) | {"data.num_eval": 8, "eval.k": (1,)}
    capsys.readouterr()
    run_evaluate(folder, changes)
    lines = tiny_run.lines(folder / "evaluation" / "samples.jsonl")
    assert sum(row["ungraded"] for row in lines) == 4
    numbers = json.loads((folder / "evaluation" / "summary.json").read_text())
    assert numbers["mean"]["ungraded"] == 4 and numbers["mean"]["pass@1"]["value"] == 0.5
    assert "4 texts have no verdict, because their grader failed (chains: 4); they count as wrong" in (
        capsys.readouterr().out
    )


def test_sample_says_why_there_is_no_verdict(tmp_path, server, capsys):
    replies(server, REFUSED)
    changes = options(server) | {"model.init": tiny_run.start()}
    run_sample(tmp_path / "none", "--question=7*8", changes=changes)
    assert "response (no verdict: judge failed: status 401):\n" in capsys.readouterr().out
