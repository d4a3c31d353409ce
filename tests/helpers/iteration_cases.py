"""An iteration of three questions in which a row becomes everything that a row can become."""

import collections

import numpy as np
from rollout_cases import rollout

from cgrpo_jax import groups as groups_lib
from cgrpo_jax import rollout as rollout_lib
from cgrpo_jax.records import Author, Problem, RowIndex, Stage
from cgrpo_jax.runs.iteration import Generated, Iteration
from cgrpo_jax.training.learner import Updates

PROBLEMS = [Problem(0, "a", "1"), Problem(1, "b", "2", grader="math"), Problem(2, "c", "3")]


def solved(question, *, rewards, refined=()):
    """Returns responses with these rewards, None without a verdict, and of the first a critique and refinements."""
    at = RowIndex(question)
    responses = [
        rollout(at.replace(response=n), prompt=(1, question, 2), reward=reward or 0.0, ungraded=reward is None)
        for n, reward in enumerate(rewards)
    ]
    of = at.replace(stage=Stage.CRITIQUE)
    attempt = rollout(of, "perhaps", prompt=(3,), parent=responses[0])
    critique = rollout(of.replace(attempt=1), "wrong", Author.RULE, (), np.zeros(1, np.float32), parent=responses[0])
    critique = critique.replace(rejected=(attempt,), verdict=False)
    refinements = [
        rollout(at.replace(stage=Stage.REFINEMENT, refinement=n), text, prompt=(4,), parent=critique, reward=reward)
        for n, (text, reward) in enumerate(refined)
    ]
    judged = rollout(of.replace(refinement=1), "right", prompt=(5,), parent=refinements[0]) if refined else None
    critiques = [critique, judged] if refined else []
    return rollout_lib.Solved(responses, refinements, collections.Counter(), critiques, PROBLEMS[question])


def make(number=4, *, trained=((True, True, True), (True, False), (False, False)), scored=True):
    """Returns the iteration: a rescued question, one whose update was skipped, one in which all are alike."""
    done = [
        solved(0, rewards=(0.0, 0.0), refined=(("fine", 1.0), ("as the critique says", 1.0), ("bad", 0.0))),
        solved(1, rewards=(1.0, None, 0.0)),
        solved(2, rewards=(0.0, 0.0)),
    ]
    candidates = [one for one in done[0].refinements if "critique" not in one.text]
    kept = candidates[:1]
    groups = groups_lib.reanchor([one.responses for one in done], kept)
    rows = groups_lib.train_rows(groups, groups_lib.Grouping(3))
    logps = [[row.old_logp - 1 for row in group] for group in rows] if scored else None
    updates = Updates([], [list(group) for group in trained], logps)
    return Iteration(number, PROBLEMS, Generated(done, [], 0, 0, {}), candidates, groups, rows, updates)
