"""Grades are delivered at the tick at which they are due, in order, whatever grading takes."""

import pytest

from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.grade_exchange import GradeExchange, submit
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards.grader import Grader
from cgrpo_jax.runtime import watchdog

PROBLEM = Problem(0, "a question", "right")


def read(exchange, tick, *, everything=False):
    """What one process alone does with what is due."""
    if due := exchange.take(tick, everything=everything):
        due.deliver([due.own])


def test_grades_are_delivered_when_they_are_due():
    exchange, delivered = GradeExchange(Grader("exact")), []
    for due, responses in ((2, ["right", "wrong"]), (1, ["wrong"]), (3, [])):
        exchange.submit(
            responses,
            PROBLEM,
            due=due,
            deliver=lambda grades, due=due: delivered.append((due, [g.score for g in grades])),
        )
    read(exchange, 0)
    assert not delivered and exchange.busy
    read(exchange, 1)
    assert delivered == [(1, [0.0])]
    read(exchange, 1, everything=True)
    assert delivered == [(1, [0.0]), (2, [1.0, 0.0]), (3, [])] and not exchange.busy


def test_what_is_cleared_is_not_delivered():
    exchange = GradeExchange(Grader("exact"))
    exchange.submit(["right"], PROBLEM, due=1, deliver=lambda grades: pytest.fail("it was cleared"))
    exchange.clear()
    read(exchange, 5, everything=True)
    assert not exchange.busy


def test_grades_need_a_grader():
    async def graded():
        await orchestrator.grade(["right"], PROBLEM)

    with pytest.raises(ValueError, match="without a grader; give it one"):
        orchestrator.Orchestrator().run([graded()])


class Records:
    """Has the interface of `Grader`, and keeps what it is asked."""

    def __init__(self, remote):
        self.remote, self.prompts = remote, []

    def is_remote(self, kind):
        return self.remote

    def submit(self, response, answer, *, kind, prompt, columns, thinking_opened):
        self.prompts.append(prompt)


def test_a_judge_reads_a_chat_as_text_and_a_function_gets_its_turns():
    chat = Problem(0, "And 3 + 4?", "7", turns=(("system", "Be brief."), ("user", "2 + 3?"), ("assistant", "5")))
    for problem, remote, prompt in (
        (PROBLEM, True, "a question"),
        (PROBLEM, False, "a question"),
        (chat, True, "System: Be brief.\n\nUser: 2 + 3?\n\nAssistant: 5\n\nUser: And 3 + 4?"),
        (chat, False, (*chat.turns, ("user", "And 3 + 4?"))),
    ):
        submit(grader := Records(remote), "7", problem, False)
        assert grader.prompts == [prompt]


def test_each_grade_says_that_the_process_goes_on():
    exchange = GradeExchange(Grader("exact"))
    exchange.submit(["right", "wrong", "no"], PROBLEM, due=1, deliver=lambda grades: None)
    before = watchdog._state.events
    read(exchange, 1)
    assert watchdog._state.events == before + 3
