"""Grades are delivered at the tick at which they are due, in order, whatever grading takes."""

import pytest

from cgrpo_jax.inference import orchestrator
from cgrpo_jax.inference.grade_exchange import GradeExchange
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards.grader import Grader

PROBLEM = Problem(0, "a question", "right")


def test_grades_are_delivered_when_they_are_due():
    exchange, delivered = GradeExchange(Grader("exact")), []
    for due, responses in ((2, ["right", "wrong"]), (1, ["wrong"]), (3, [])):
        exchange.submit(
            responses,
            PROBLEM,
            due=due,
            deliver=lambda grades, due=due: delivered.append((due, [g.score for g in grades])),
        )
    exchange.read(0, everything=False)
    assert not delivered and exchange.busy
    exchange.read(1, everything=False)
    assert delivered == [(1, [0.0])]
    exchange.read(1, everything=True)
    assert delivered == [(1, [0.0]), (2, [1.0, 0.0]), (3, [])] and not exchange.busy
    assert exchange.seconds > 0


def test_what_is_cleared_is_not_delivered():
    exchange = GradeExchange(Grader("exact"))
    exchange.submit(["right"], PROBLEM, due=1, deliver=lambda grades: pytest.fail("it was cleared"))
    exchange.clear()
    exchange.read(5, everything=True)
    assert not exchange.busy


def test_grades_need_a_grader():
    async def graded():
        await orchestrator.grade(["right"], PROBLEM)

    with pytest.raises(ValueError, match="without a grader; give it one"):
        orchestrator.Orchestrator().run([graded()])
