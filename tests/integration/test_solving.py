"""One question through its stages, as `train` takes it: what asks for what, when, and who is asked for a reward."""

import numpy as np
import pytest
import tiny_run
from fake_engine import FakeEngine, key_of
from scripted_rollouts import INDICATIVE, PROBLEMS, PROMPTS, RIGHT, TOKENIZER, WRONG, WRONG_TEXTS

from cgrpo_jax import rollout, sharding
from cgrpo_jax.inference.critic import Critic
from cgrpo_jax.inference.engine import Sampled
from cgrpo_jax.inference.generators import Generator, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.runs.settings import run_settings

VERDICT_REWARDS = {"reward_source": "critic", "critique.when": "all"}


def solve(say, steps=lambda index: 1, *, questions=2, num_slots=100, grader="trace", **changes):
    """Solves questions with a scripted policy that critiques itself; returns the results and the engine."""

    def sampled(index):
        ids = [*TOKENIZER.encode(say(index)), TOKENIZER.end_of_turn_id]
        return Sampled(np.asarray(ids, np.int32), np.zeros(len(ids), np.float32), False)

    config = tiny_run.config({"critique.kind": "cot", "num_responses": 2, "critique.max_retries": 0} | changes)
    engine = FakeEngine(sampled, steps=steps, num_slots=num_slots)
    policy = Generator(engine, {}, PROMPTS, Author.POLICY, weights_step=0, seed=0, iteration=0)
    critic = Critic(kind=config.critique.kind, generator=policy, max_retries=config.critique.max_retries)
    method = run_settings(config, sharding.one_device()).method
    problems = [PROBLEMS[q % 2] for q in range(questions)]
    with running_engines(policy) as engines:
        coroutines = [
            rollout.solve(policy, critic, problem, question=q, method=method, tokenizer=TOKENIZER)
            for q, problem in enumerate(problems)
        ]
        solved = Orchestrator(grader_lib.Grader(grader) if grader else None).run(coroutines, engines=engines)
        return [(one.responses, one.refinements, one.counts) for one in solved], engine


def fails(index):
    """All responses are wrong, all critiques say so, all refinements are right."""
    problem = index.question % 2
    return {Stage.RESPONSE: WRONG_TEXTS[problem], Stage.CRITIQUE: WRONG}.get(index.stage, PROBLEMS[problem].solution)


def when(engine, kind, **wanted):
    """Returns the places in the schedule of the events about the rows that have the wanted indices."""

    def fits(event):
        rows = [event[1].indices[event[2]]] if kind == "done" else event[1].indices
        return any(all(getattr(index, name) == value for name, value in wanted.items()) for index in rows)

    found = [at for at, event in enumerate(engine.events) if event[0] == kind and fits(event)]
    assert found
    return found


def test_critiques_are_asked_for_while_other_questions_are_at_their_first_response():
    _, engine = solve(fails, lambda index: 1 if index.question == 0 else 12, questions=6)
    for stage in (Stage.CRITIQUE, Stage.REFINEMENT):
        begun = when(engine, "add", question=0, stage=stage)
        assert max(begun) < min(when(engine, "done", question=5, stage=Stage.RESPONSE))
    assert max(when(engine, "done", question=0)) < min(when(engine, "done", question=5))


def test_a_response_is_refined_while_another_of_its_question_is_critiqued():
    _, engine = solve(fails, lambda index: 9 if index.stage == Stage.CRITIQUE and index.response else 1, questions=1)
    critiqued = when(engine, "done", stage=Stage.CRITIQUE, response=1)
    assert max(when(engine, "done", stage=Stage.REFINEMENT, response=0)) < min(critiqued)
    assert max(when(engine, "add", stage=Stage.CRITIQUE)) < min(when(engine, "done", stage=Stage.CRITIQUE))


def test_no_response_is_critiqued_before_all_of_its_question_have_failed():
    _, engine = solve(fails, lambda index: 1 + 5 * index.response, questions=1)
    asked = when(engine, "add", stage=Stage.CRITIQUE)
    assert min(asked) > max(when(engine, "done", stage=Stage.RESPONSE))
    passes = lambda index: PROBLEMS[0].solution if index.response else fails(index)  # noqa: E731
    (one,), engine = solve(passes, questions=1)
    assert one[1] == [] and {key[4] for key in engine.added} == {Stage.RESPONSE}


def test_responses_go_first_and_each_refinement_follows_its_critique():
    """There is one slot, which a refinement so finds as its critique has left it: what their prompts share is there."""
    _, engine = solve(fails, questions=3, num_slots=1, num_responses=1)
    ended = [event[1].indices[event[2]] for event in engine.events if event[0] == "done"]
    assert [(index.question, index.stage) for index in ended] == [
        *((q, Stage.RESPONSE) for q in range(3)),
        *((q, stage) for q in range(3) for stage in (Stage.CRITIQUE, Stage.REFINEMENT)),
    ]


@pytest.mark.parametrize("num_slots", [1, 3, 100])
def test_results_do_not_depend_on_the_schedule(num_slots):
    changes = {"critique.num_per_response": 2, "refine.per_critique": 2, "critique.max_retries": 1}
    steps = lambda index: 1 + (7 * index.response + 3 * index.critique + index.question) % 4  # noqa: E731
    solved, engine = solve(fails, steps, num_slots=num_slots, **changes)
    for q, (responses, refinements, counts) in enumerate(solved):
        assert [key_of(row.index) for row in responses] == [(q, r, 0, 0, Stage.RESPONSE, 0) for r in (0, 1)]
        assert [key_of(row.index)[:4] for row in refinements] == [
            (q, r, c, n) for r in (0, 1) for c in (0, 1) for n in (0, 1)
        ]
        assert [row.reward for row in responses + refinements] == [0.0] * 2 + [1.0] * 8
        for row in refinements:
            assert row.parent.parent is responses[row.index.response]
            assert (row.parent.text, row.parent.index.critique) == (WRONG, row.index.critique)
        tokens = 4 * (len(TOKENIZER.encode(WRONG)) + 1)
        assert counts == {
            "critiqued": 4, "attempts": 4, "comparable": 4, "valid": 4, "judged_failed": 4, "tokens": tokens,
        }  # fmt: skip
    assert len(set(engine.added)) == len(engine.added) == 2 * (2 + 4 + 8)


def test_critiques_of_all_are_those_that_refinements_follow():
    solved, engine = solve(fails, questions=1, **{"critique.when": "all"})
    ((responses, refinements, counts),) = solved
    assert counts["critiqued"] == 2 and [key[4] for key in engine.added].count(Stage.CRITIQUE) == 2
    assert [row.parent.text for row in refinements] == [WRONG, WRONG]
    assert [row.parent.parent.reward for row in refinements] == [0.0, 0.0]


@pytest.mark.parametrize("refine", ["policy", "solution"])
def test_where_the_verdict_is_the_reward_nothing_else_is(refine):
    """There is no grader. The critic calls each response wrong and what comes in its place right."""

    def say(index):
        of_a_refinement = index.refinement > 0  # a refinement's critique counts it from 1
        return RIGHT if index.stage == Stage.CRITIQUE and of_a_refinement else fails(index)

    solved, engine = solve(say, grader=None, **VERDICT_REWARDS, **{"refine.kind": refine})
    for (responses, refinements, counts), problem in zip(solved, PROBLEMS, strict=True):
        assert [row.reward for row in responses] == [0.0, 0.0]
        assert [row.reward for row in refinements] == [1.0] * (2 if refine == "policy" else 1)
        assert {row.text for row in refinements} == {problem.solution}
        assert counts["critiqued"] == counts["attempts"] == 2 + len(refinements)
    assert (Stage.REFINEMENT in {key[4] for key in engine.added}) is (refine == "policy")


def test_an_unreadable_critique_is_no_reward():
    solved, _ = solve(lambda index: "ok", grader=None, questions=1, **VERDICT_REWARDS)
    ((responses, refinements, counts),) = solved
    assert [row.reward for row in responses + refinements] == [0.0] * 4
    assert {row.parent.text for row in refinements} == {INDICATIVE} and counts["fallbacks"] == 4


def test_inserted_solutions_ask_for_no_critique():
    solved, engine = solve(fails, **{"refine.kind": "solution"})
    assert {key[4] for key in engine.added} == {Stage.RESPONSE}
    for (_, refinements, counts), problem in zip(solved, PROBLEMS, strict=True):
        assert [(row.text, row.reward, row.author) for row in refinements] == [(problem.solution, 1.0, Author.SOLUTION)]
        assert not counts
