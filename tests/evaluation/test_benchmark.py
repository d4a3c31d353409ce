"""Evaluation on three problems whose answers are known: greedy pass@1, pass@k of samples."""

import types

import jax
import numpy as np
import pytest
from chain_prompts import CHAINS, arithmetic_tokenizer, make
from fake_engine import FakeEngine

from cgrpo_jax.evaluation import benchmark
from cgrpo_jax.inference.engine import Sampled
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.inference.sampling import index_array, row_keys
from cgrpo_jax.records import Author, Problem
from cgrpo_jax.rewards import grader
from cgrpo_jax.runs import log

TOKENIZER = arithmetic_tokenizer()
PROBLEMS = [
    Problem(i, question, answer) for i, (question, answer) in enumerate([("7*8", "56"), ("2+3", "5"), ("9*9", "81")])
]
GREEDY = [True, False, True]
CORRECT = [0, 1, 4]  # of four samples


def scripted():
    """An engine that answers some questions right; a wrong answer takes no more tokens and is cut off."""

    def say(index):
        greedy = engine.runs[-1].settings["sampling"].temperature == 0
        right = GREEDY[index.question] if greedy else index.response < CORRECT[index.question]
        answer = PROBLEMS[index.question].answer
        ids = TOKENIZER.encode(f"Answer: {answer if right else 0}") + [TOKENIZER.end_of_turn_id] * right
        return Sampled(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32), not right)

    engine = FakeEngine(say)
    return engine


def evaluate(ks=(1, 2, 4), *, pass_threshold=1.0, on_tick=None):
    engine = scripted()
    policy = Generator(engine, "weights", make(TOKENIZER, **CHAINS), Author.POLICY, 0, 7, benchmark.STREAM)
    protocol = benchmark.Protocol(
        num_samples=4, ks=ks, temperature=0.6, top_p=0.95, max_length=20, pass_threshold=pass_threshold, grader="trace"
    )
    orchestrator = Orchestrator(grader.Grader("trace"))
    result, groups = benchmark.evaluate(policy, PROBLEMS, protocol=protocol, orchestrator=orchestrator, on_tick=on_tick)
    assert not engine.at_work
    return result, groups, engine.runs


def test_whoever_looks_at_the_progress_may_stop_it():
    seen = []

    def look(progress):
        seen.append((progress.done, progress.total))
        if len(seen) == 2:
            raise KeyboardInterrupt

    evaluate(on_tick=lambda progress: seen.append((progress.done, progress.total)))
    assert len(seen) >= 2 and {total for _, total in seen} == {3}
    seen.clear()
    with pytest.raises(KeyboardInterrupt):
        evaluate(on_tick=look)
    assert len(seen) == 2


def test_pass_at_one_is_greedy_and_pass_at_k_unbiased():
    result, _, _ = evaluate()
    right, wrong = len(TOKENIZER.encode("Answer: 56")) + 1, len(TOKENIZER.encode("Answer: 0"))
    assert result == pytest.approx(
        {
            "pass@1": 2 / 3,  # of the samples it would be 5 / 12
            "pass@2": (0 + 3 / 6 + 1) / 3,  # three of the six pairs hold the one right sample
            "pass@4": 2 / 3,
            "mean@4": 5 / 12,
            "mean_length": (2 * right + wrong) / 3,
            "truncated": 1 / 3,
            "ungraded": 0,
        }
    )


def test_rollouts_are_the_greedy_one_and_then_the_samples():
    _, groups, _ = evaluate()
    rewards_Q = [[row.reward for row in group] for group in groups]
    assert rewards_Q == [[1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [1, 1, 1, 1, 1]]
    assert [[row.index.response for row in group] for group in groups] == [[0, 0, 1, 2, 3]] * 3
    assert all(row.author == Author.POLICY and row.parent is None for group in groups for row in group)
    assert groups[2][0].text == "Answer: 81" and not groups[2][0].truncated


def test_what_is_sampled_and_how():
    _, _, runs = evaluate()
    assert [run.settings["sampling"].temperature for run in runs] == [0.0, 0.6]
    assert [run.settings["sampling"].top_p for run in runs] == [1.0, 0.95]
    for run, count in zip(runs, (1, 4), strict=True):
        assert run.params == "weights"
        assert [TOKENIZER.decode(request.prompt_ids) for request in run.requests] == ["7*8", "2+3", "9*9"]
        assert [len(request.indices) for request in run.requests] == [count] * 3
        assert {request.max_length for request in run.requests} == {20}
        assert run.settings["seed"] == 7 and run.settings["sampling"].top_k == 0


def test_the_same_noise_at_every_evaluation_and_never_that_of_training():
    (_, _, (_, first)), (_, _, (_, second)) = evaluate(), evaluate()
    assert first.settings == second.settings
    assert [request.indices for request in first.requests] == [request.indices for request in second.requests]
    index = index_array([first.requests[0].indices[0]])
    drawn = np.asarray(jax.random.key_data(row_keys(7, np.uint32(first.settings["iteration"]), index)))
    for iteration in range(50):
        assert (np.asarray(jax.random.key_data(row_keys(7, np.uint32(iteration), index))) != drawn).any()


def test_pass_at_one_alone_needs_no_samples():
    result, groups, runs = evaluate(ks=(1,))
    assert len(runs) == 1 and [len(group) for group in groups] == [1, 1, 1]
    assert set(result) == {"pass@1", "mean_length", "truncated", "ungraded"} and result["pass@1"] == 2 / 3


def test_responses_without_a_verdict_are_counted(monkeypatch):
    wrong = grader.Pending(lambda: grader.Grade(0.0, None, "judge failed: timeout", failed=True))
    submit = grader.Grader.submit
    fails = lambda self, text, *more, **rest: wrong if text == "Answer: 0" else submit(self, text, *more, **rest)  # noqa: E731
    monkeypatch.setattr(grader.Grader, "submit", fails)
    result, groups, _ = evaluate()
    assert result["ungraded"] == 1 + 7 and result["pass@1"] == 2 / 3
    assert [sum(row.ungraded for row in group) for group in groups] == [4, 4, 0]
    assert benchmark.solved(groups, 1.0) == [True, True, True]
    failed = [[row.replace(reward=0.0, ungraded=True) for row in group[:1]] for group in groups]
    none = [groups[2][0].replace(reward=0.0)]
    found = benchmark.solved([failed[0], none, none + failed[0], failed[0] + groups[2]], 1.0)
    assert found == [None, False, None, True]


def test_the_summary_of_a_run_counts_what_is_known():
    """Of six questions 1, 2, 4 and 5 were unsolved; then 1 is solved, 2 is not, and of 4 and 5 nobody knows."""
    progress = types.SimpleNamespace(
        unsolved_before=[1, 2, 4, 5],
        eval_before=None,
        best=None,
        all_failed_start=None,
        iteration=2,
        num_tokens=9,
        seconds=1.0,
        inputs={"the task": "chains 2"},
    )
    told = lambda solved: log.summary(progress, updates=2, after=None, solved_after=solved)  # noqa: E731
    found = told([True, True, False, None, None, None])
    assert (found["unsolved_before"], found["unsolved_before_solved_after"]) == (4, 1 / 2)
    assert found["task"] == "chains 2"
    assert told([True] + [None] * 5)["unsolved_before_solved_after"] is None
    progress.unsolved_before = []
    assert told([True] * 6)["unsolved_before_solved_after"] is None
    progress.unsolved_before = None
    assert told(None)["unsolved_before"] is None


def test_a_lower_threshold():
    assert evaluate(pass_threshold=0.0)[0]["pass@1"] == 1
