"""Rows of a file of rollouts: of each kind one, with the values that are hardest to keep."""

import numpy as np

from cgrpo_jax.datasets.rollouts import Row
from cgrpo_jax.records import Author, LossKind, Problem, Rollout, RowIndex, Stage, TrainRow

PROBLEMS = [
    Problem(3, "What is 2 + 3?", "5", "2 + 3 = 5", "sums", columns={"level": 1, "tags": ["a", None], "x": 0.1}),
    Problem(2**40, "And ½?", "1/2", None, "", "math", turns=(("system", "Be brief."), ("user", "Hi\u2028\x00"))),
]
# Not a number whatever they are, the least there is, a number that is nobody's, both zeros.
HARD = np.array([0x7FC00001, 0xFF800000, 1, 0xBE99999A, 0, 0x80000000], np.uint32).view(np.float32)


def rollout(index, text="12", author=Author.POLICY, prompt=(1, 7, 2), logp=None, **fields):
    ids = np.arange(5, 5 + (2 if logp is None else len(logp)), dtype=np.int32)
    logp = -np.ones(len(ids), np.float32) if logp is None else logp
    return Rollout(index, author, 4, np.array(prompt, np.int32), ids, logp, text=text, **fields)


def make():
    """Returns all rows of an iteration of two questions."""
    at = RowIndex(question=0, stage=Stage.RESPONSE)
    first = rollout(at, logp=HARD, reward=0.0, extracted="12", feedback="no", truncated=True)
    second = rollout(at.replace(response=1), opening="<think>\n", reward=1 / 3, author=Author.POLICY)
    of = at.replace(stage=Stage.CRITIQUE)
    cut = rollout(of, "perhaps", prompt=(1, 8, 8, 2), prompt_cut=True, parent=first)
    again = rollout(of.replace(attempt=1), "right", prompt=(1, 8, 8, 2), parent=first, verdict=True)
    rule = rollout(of.replace(attempt=2), "wrong", Author.RULE, (), np.zeros(1, np.float32), parent=first)
    rule = rule.replace(verdict=False, ungraded=True, rejected=(cut, again))
    asked = rollout(of.replace(response=1), "so", Author.CRITIC, (), np.zeros(3, np.float32), parent=second)
    asked = asked.replace(asked="Be brief.\n\nIs it right?", verdict=None, shown="os")
    kept = rollout(at.replace(stage=Stage.REFINEMENT), prompt=(1, 9, 2), parent=rule, reward=1.0)
    kept = kept.replace(rewards=(("style.py:short", 0.5), ("exact", None)))
    lost = rollout(at.replace(stage=Stage.REFINEMENT, refinement=1), prompt=(1, 9, 2), parent=rule, reward=0.0)
    judged = rollout(of.replace(refinement=1), "right", prompt=(1, 6, 2), parent=kept, verdict=True)
    other = RowIndex(question=1)
    failed = rollout(other, "", prompt=(1, 5, 2), logp=np.zeros(0, np.float32), reward=0.0, ungraded=True)
    answer = rollout(other.replace(stage=Stage.REFINEMENT), "1/2", Author.SOLUTION, (1, 5, 2), np.zeros(4, np.float32))
    answer = answer.replace(parent=failed, reward=1.0)

    def trains(row, advantage, context=first, **fields):
        return TrainRow(context.prompt_ids, row.token_ids, row.logp, float(np.float32(advantage)), **fields)

    one, two = PROBLEMS
    return [
        Row(first, one, "mine", train_row=trains(first, -1 / 3), place=0, trainer_logp=HARD[::-1].copy()),
        Row(second, one, "mine", train_row=trains(second, 0.0), place=2, dropped="zero_advantage"),
        Row(cut, one, is_rejected=True),
        Row(again, one, is_rejected=True),
        Row(rule, one),
        Row(asked, one),
        Row(kept, one, "mine", train_row=trains(kept, 2 / 3, refined=True), place=1),
        Row(lost, one, "mine", dropped="not_selected"),
        Row(judged, one),
        Row(failed, two, "", dropped="ungraded"),
        Row(answer, two, "math", train_row=trains(answer, 1.0, failed, loss=LossKind.NLL, refined=True), place=0),
    ]


def verdict(question=2, reward=1.0):
    """Returns a row of a verdict problem about a response to the first question."""
    problem = Problem(PROBLEMS[0].index, "Is it right?", "wrong", None, "sums", "verdict")
    return Row(rollout(RowIndex(question=question), "wrong", prompt=(1, 4, 2), reward=reward), problem, "verdict")


def spell(ids):
    return " ".join(map(str, ids))
