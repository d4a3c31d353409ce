"""Whole runs that are judged by a rubric: its rewards, and what of it becomes critiques, behind a scripted endpoint."""

import itertools
import json

import chat_server
import numpy as np
import pytest
import tiny_run
from chain_prompts import arithmetic_tokenizer
from rubric_cases import HOLDS, RUBRIC, WEIGHTS, check, options, rule
from tiny_run import metrics, rollouts, run

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Author, Stage

server = chat_server.server  # the fixture
TOKENIZER = arithmetic_tokenizer()


def expected(text, *, evidence):
    """Returns the reward of a response and its critique, by hand."""
    held = [holds(text) for holds in HOLDS.values()]
    reward = sum(weight * ok for weight, ok in zip(WEIGHTS, held, strict=True)) / 4
    shown = f" Evidence: {text.splitlines()[0]}" if evidence else ""
    said = [
        f"{'Not met' if weight > 0 else 'To be avoided'}: {name}.{shown}".removesuffix(".") + "."
        for name, weight, ok in zip(HOLDS, WEIGHTS, held, strict=True)
        if ok != (weight > 0)
    ]
    return reward, " ".join([*(said or ["All criteria are met."]), f"Conclusion: {'wrong' if said else 'right'} [END]"])


@pytest.mark.parametrize("evidence", [False, True])
def test_the_items_that_a_response_fails_are_its_reward_and_its_critique(tmp_path, server, monkeypatch, evidence):
    seen = tiny_run.watch(monkeypatch)
    server.reply = rule if evidence else check
    folder = run(tmp_path / "run", options(tmp_path, server.url, **{"judge.evidence": evidence}), num_iterations=1)
    (line,) = metrics(folder)
    (rows,) = rollouts(folder)
    assert np.isfinite(line["loss"]) and line["grad_norm"] > 0
    judged = [row.rollout for row in rows if row.rollout.stage != Stage.CRITIQUE]
    critiques = [row.rollout for row in rows if row.rollout.stage == Stage.CRITIQUE]
    assert line["judge/http_requests"] == len(judged) * (len(RUBRIC) if evidence else 1)
    for one in judged:
        assert (one.reward, one.ungraded) == (pytest.approx(expected(one.text.strip(), evidence=evidence)[0]), False)
    for one in critiques:
        said = expected(one.parent.text.strip(), evidence=evidence)[1]
        assert (one.text, one.verdict, one.author) == (said, False, Author.RULE)
    assert len({one.reward for one in judged}) > 2 and len(critiques) == line["refine/attempted"] > 0
    asked = seen.asked(Stage.REFINEMENT)
    assert len(asked) == len(critiques) and all("Critique: " in text for text in asked)
    for _, group in itertools.groupby(rows, lambda row: row.rollout.index.question):
        trained = [row for row in group if row.place is not None]
        mean = np.mean([row.rollout.reward for row in trained])
        for row in trained:
            assert row.train_row.advantage == pytest.approx(row.rollout.reward - mean, abs=1e-6)
            assert row.train_row.refined == (row.rollout.stage == Stage.REFINEMENT)


def test_the_items_that_a_response_fails_are_what_its_teacher_sees(tmp_path, server):
    server.reply = check
    alone = {"judge.evidence": False, "refine.kind": "none", "critique.when": "all", "distil.kind": "alone"}
    folder = run(tmp_path / "run", options(tmp_path, server.url, **alone, **{"distil.top_tokens": 8}), num_iterations=1)
    (line,) = metrics(folder)
    (rows,) = rollouts(folder)
    assert line["distil/divergence"] > 0 and line["grad_norm"] > 0
    failed = [row.rollout for row in rows if row.rollout.stage == Stage.RESPONSE and row.rollout.reward < 1]
    said = [expected(one.text.strip(), evidence=False)[1] for one in failed]
    assert len(failed) == line["rows_trained"] > 0
    for one, text in zip(failed, said, strict=True):
        assert text in TOKENIZER.decode(one.feedback_ids)


def test_a_hostile_rubric_is_refused_with_its_row_before_anything_runs(tmp_path, server):
    changes = options(tmp_path, server.url)
    file = tmp_path / "rubrics.jsonl"
    lines = file.read_text().splitlines()
    lines[4] = json.dumps({"question": "2*2", "answer": '[{"text": "is short", "weight": NaN}]'})
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=r"grader 'judge' \(row 5: .*weight nan of criterion 1 is no number"):
        run(tmp_path / "run", changes)
    assert server.seen.empty()
