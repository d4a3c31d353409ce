"""Two questions, and rows of them that say what a script says."""

import collections
import dataclasses
import itertools
import types

import numpy as np
from chain_prompts import CHAINS, arithmetic_tokenizer, make

from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.inference.generators import Generator
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author, Problem, Rollout, RowIndex
from cgrpo_jax.rewards import grader as grader_lib
from cgrpo_jax.rollout import Critic, critique

TOKENIZER = arithmetic_tokenizer()
PROMPTS = make(TOKENIZER, **CHAINS)
END = TOKENIZER.end_of_turn_id
PROBLEMS = [Problem(i, q, arithmetic.answer(q), arithmetic.solution(q)) for i, q in enumerate(["7*8+6", "2+3*4"])]
WRONG_TEXTS = ["7*8=54, 4+6=10. Answer: 54 10", "2+3=5, 5*4=21. Answer: 5 21"]
RIGHT, WRONG, UNREADABLE = "ok. Conclusion: right [END]", "no. Conclusion: wrong [END]", "Conclusion: perhaps [END]"
INDICATIVE = "The answer is wrong. Conclusion: wrong [END]"


def row(index, text, *, author=Author.POLICY, **fields):
    ids = np.asarray([*TOKENIZER.encode(text), END], np.int32)
    fields = {"prompt_ids": PROMPTS.for_question(PROBLEMS[index.question].question)} | fields
    return Rollout(index=index, author=author, weights_step=5, token_ids=ids, logp=-np.ones(len(ids), np.float32),
                   text=text, **fields)  # fmt: skip


def response(question, number, reward=0.0):
    text = PROBLEMS[question].solution if reward else WRONG_TEXTS[question]
    return row(RowIndex(question=question, response=number), text, reward=reward)


class ScriptedGenerator:
    """Has the interface of `Generator`; `script` gives the text of a row from its index, or is the text of all."""

    write_critique = Generator.write_critique
    write_hint = Generator.write_hint
    seed = iteration = 0

    def __init__(self, script, prompts=PROMPTS, author=Author.CRITIC):
        self.script, self.prompts, self.author = script, prompts, author
        self.calls = []

    async def write(self, prompt_ids, indices, *, max_length, parent=None):
        self.calls.append(types.SimpleNamespace(prompt=prompt_ids, indices=indices, max_length=max_length))
        script = self.script if callable(self.script) else lambda index: self.script
        return [
            row(index, script(index), prompt_ids=prompt_ids, author=self.author, parent=parent) for index in indices
        ]

    @property
    def attempts(self):
        """The calls of the first attempts, of the second, ..., each in the order of their rows."""
        calls = sorted(self.calls, key=lambda call: (call.indices[0].attempt, *key_of(call.indices[0])))
        return [list(calls) for _, calls in itertools.groupby(calls, lambda call: call.indices[0].attempt)]

    @property
    def asked(self):
        """All prompts as text."""
        return [TOKENIZER.decode(call.prompt) for calls in self.attempts for call in calls]


def key_of(index):
    return dataclasses.astuple(index)


def grade_traces(texts, problem, thinking_opened):
    """Grades at once: what `orchestrator.grade` does with workers."""

    async def graded():
        return grader_lib.grade("trace", texts, [problem.answer] * len(texts))

    return graded()


def at_once(stage, rows):
    """Runs `stage(rows, problem)` for the rows of each question; returns its rows and counts, put together."""
    groups = [(q, list(group)) for q, group in itertools.groupby(rows, lambda row: row.index.question)]
    done = Orchestrator().run([stage(group, PROBLEMS[q]) for q, group in groups])
    return [one for rows, _ in done for one in rows], sum((counts for _, counts in done), collections.Counter())


def critiqued_by(critic, rows, num_critiques=1):
    return at_once(
        lambda rows, problem: critique(critic, rows, problem, encode=TOKENIZER.encode, num_critiques=num_critiques),
        rows,
    )


def by_rule(rows, **settings):
    settings = dict(kind="execution", check_steps=arithmetic.check_steps) | settings
    return critiqued_by(Critic(**settings), rows)[0]
