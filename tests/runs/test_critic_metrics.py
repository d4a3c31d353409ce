"""The numbers of a critic that learns, by hand."""

import pytest
from critic_cases import FIRST, SECOND, SKIPPED, critic_updates

from cgrpo_jax.runs.critic_metrics import learning_metrics
from cgrpo_jax.training.critic_rows import CriticTraining


def test_metrics_of_what_a_critic_learns():
    """Utilities 1 and 0.5 of the wrong response, 0.25 and 0 of the right one; of 4 refinements each 2 and 1 pass."""
    found = learning_metrics(critic_updates(SKIPPED, FIRST, SECOND))
    assert found == pytest.approx(
        {
            "critic/utility": 1.75 / 4,
            "critic/fix_rate": 2 / 4,
            "critic/break_rate": 3 / 4,
            "critic/verdict_accuracy": 2 / 4,
            "critic/skipped_updates": 1,
            "critic/rows_trained": 8,
            "critic/learning_rate": 1e-3,
            "critic/loss": 1.5,
            "critic/grad_norm": 2.0,
            "critic/kl": 6 / 4,
        }
    )


def test_of_policy_gradient_the_kl_term_says_how_far_it_moved():
    gradient = CriticTraining("policy_gradient", "policy", beta=0.1, verdict_weight=0.0)
    stats = {"grad_norm": 1.0, "rows_trained": 4, "policy_loss": -0.5, "kl_sum": 2.0, "rco_loss": 0.0}
    found = learning_metrics(critic_updates(stats, training=gradient))
    assert (found["critic/loss"], found["critic/kl"]) == (-0.5, 0.5)


def test_without_updates_there_is_what_critiques_achieved():
    found = learning_metrics(critic_updates(SKIPPED))
    assert found["critic/utility"] == 1.75 / 4 and found["critic/skipped_updates"] == 1
    assert not {"critic/loss", "critic/grad_norm", "critic/kl"} & found.keys() and found["critic/rows_trained"] == 0


def test_a_critic_that_does_not_learn_has_none():
    assert learning_metrics(None) == {}
