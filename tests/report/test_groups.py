import dataclasses

import pytest
import report_runs
import rollout_cases
from iteration_cases import make

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.report import groups, run_folder
from cgrpo_jax.report.groups import Critics, Flag, Group, Outcome


@pytest.fixture
def run(tmp_path):
    return run_folder.read(report_runs.write(tmp_path / "a", iterations=1, questions=1))


def of_rows(run, tmp_path, rows, iteration=0):
    path = tmp_path / rollouts.file_name(iteration)
    rollouts.write(path, rows, iteration=iteration, spell=rollout_cases.spell)
    return groups.read(dataclasses.replace(run, files=[path]))


def test_what_became_of_each_question(run, tmp_path):
    rows = make().all_rows(grader="math", reward_source="verifier")
    (rescued, skipped, wrong), asked = of_rows(run, tmp_path, rows, 4)
    assert (rescued.outcome, rescued.rewards, rescued.refined, rescued.refined_passed, rescued.kept) == (
        Outcome.RESCUED, (0.0, 0.0), 3, 2, 1,
    )  # fmt: skip
    assert rescued.flags == {Flag.RESCUED, Flag.MENTIONS} and rescued.trained == 3 and rescued.iteration == 4
    assert (skipped.outcome, skipped.rewards) == (Outcome.MIXED, (1.0, None, 0.0))
    assert skipped.flags == {Flag.UNGRADED, Flag.SKIPPED}
    assert (wrong.outcome, wrong.flags) == (Outcome.ALL_WRONG, {Flag.NEVER_SOLVED})
    assert [one.question for one in asked.values()] == ["a", "b", "c"]


def test_what_has_no_verdict_is_not_wrong(run, tmp_path):
    rows = make().all_rows(grader="math", reward_source="verifier")
    kept = [row for row in rows if row.rollout.index.question == 1 and (row.rollout.ungraded or row.rollout.reward)]
    (found,), _ = of_rows(run, tmp_path, kept)
    assert (found.rewards, found.outcome) == ((1.0, None), Outcome.ALL_RIGHT)


def test_a_critic_that_calls_wrong_what_passes_is_wrong_and_a_rule_never_is(run, tmp_path):
    first, second, *others = rollout_cases.make()
    critique = others[2].rollout.replace(author="policy", verdict=True, parent=first.rollout, rejected=())
    said = dataclasses.replace(others[2], rollout=critique)
    (found,), _ = of_rows(run, tmp_path, [first, second, said])
    assert Flag.CRITIC_WRONG in found.flags
    ruled = dataclasses.replace(said, rollout=critique.replace(author="rule"))
    (found,), _ = of_rows(run, tmp_path, [first, second, ruled])
    assert Flag.CRITIC_WRONG not in found.flags


def test_critiques_are_compared_with_the_grader_and_with_the_gold_answer(tmp_path):
    texts = report_runs.Texts(critique="It is {n}.")
    run = run_folder.read(report_runs.write(tmp_path / "a", iterations=4, questions=6, texts=texts))
    found, _ = groups.read(run)
    one = sum((group.critics for group in found), Critics())
    rescued = sum(group.outcome == Outcome.RESCUED for group in found)
    assert one == Critics(one.written, one.written, one.written, one.written, rescued, rescued)
    assert one.written == sum(group.critiques for group in found) > rescued > 0


def test_a_critique_that_is_wrong_or_says_nothing_of_the_answer_is_counted_so(run, tmp_path):
    first, second, *others = rollout_cases.make()
    of = others[2].rollout.replace(author="policy", parent=first.rollout, rejected=(), ungraded=False)
    said = [of.replace(verdict=True, text="It is 5."), of.replace(verdict=False), of.replace(verdict=None)]
    said = [one.replace(index=of.index.replace(critique=number)) for number, one in enumerate(said)]
    rows = [dataclasses.replace(others[2], rollout=one) for one in said]
    (found,), _ = of_rows(run, tmp_path, [first, second, *rows])  # the first fails; the gold answer is 5
    assert found.critics == Critics(written=3, judged=2, agreed=1, stated=1)


def group(iteration, passed, *, problem="x", refined_passed=0):
    outcome = Outcome.MIXED if passed else Outcome.RESCUED if refined_passed else Outcome.ALL_WRONG
    return Group(0, iteration, 0, problem, (0.0, 1.0), passed, 0, refined_passed, 0, 0, outcome, frozenset(), 0, False)


def test_forgotten_is_what_was_solved_before_and_never_solved_what_nothing_solves():
    found = groups.with_history([group(0, 1), group(1, 0), group(0, 0, problem="y"), group(2, 0, problem="y")])
    assert {(one.problem, one.iteration): set(one.flags) for one in found} == {
        ("x", 0): set(), ("x", 1): {Flag.FORGOTTEN}, ("y", 0): {Flag.NEVER_SOLVED}, ("y", 2): {Flag.NEVER_SOLVED},
    }  # fmt: skip
    assert groups.with_history([group(0, 0, refined_passed=1), group(1, 0)])[1].flags == frozenset()


def test_verdict_problems_are_no_groups(run, tmp_path):
    rows = make().all_rows(grader="math", reward_source="verifier")
    before, _ = of_rows(run, tmp_path, rows)
    after, asked = of_rows(run, tmp_path, [*rows, rollout_cases.verdict(3, reward=0.0)])
    assert after == before and len(asked) == 3


def test_a_question_that_another_one_was_drawn_for_is_said_so(run, tmp_path):
    rows = make().all_rows(grader="math", reward_source="verifier")
    out = [dataclasses.replace(row, dropped="drawn_on") if row.rollout.index.question == 2 else row for row in rows]
    assert [one.drawn_on for one in of_rows(run, tmp_path, out)[0]] == [False, False, True]
