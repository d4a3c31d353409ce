"""When a critic behind an endpoint that says nothing usable ends the run; graders are in test_orchestrator_answers."""

import pytest

from cgrpo_jax.errors import GradingError
from cgrpo_jax.inference.grader_health import UNUSABLE_REPLIES, GraderHealth
from cgrpo_jax.records import Problem


def record(health, number, *, questions=4, failure="status 503"):
    for i in range(number):
        health.record_reply(Problem(question="q", answer="a", index=i % questions), failure=failure)


def test_a_critic_that_says_nothing_usable_ends_the_run():
    health = GraderHealth()
    record(health, UNUSABLE_REPLIES - 1)
    with pytest.raises(
        GradingError, match=r"gave no verdict to its last 32 requests \(status 503\); see that it works"
    ):
        record(health, 1)


def test_only_replies_in_a_row_count_and_iterations_go_on_counting():
    health = GraderHealth()
    record(health, UNUSABLE_REPLIES - 1)
    record(health, 1, failure=None)
    record(health, UNUSABLE_REPLIES - 1)
    health.start_run()  # the next iteration
    with pytest.raises(GradingError, match="gave no verdict"):
        record(health, 1)


def test_few_questions_say_nothing_of_a_critic():
    health = GraderHealth()
    record(health, 10 * UNUSABLE_REPLIES, questions=3)
    with pytest.raises(GradingError, match="its last 324 requests"):
        record(health, 4, questions=4)
