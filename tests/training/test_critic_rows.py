"""What a critic learns in the loop: utilities, rewards, advantages and gradients by hand, in float64."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rollout_cases import rollout

from cgrpo_jax import objective
from cgrpo_jax.records import Author, LossKind, Problem, RowIndex, Stage
from cgrpo_jax.rollout import Solved
from cgrpo_jax.training import critic_rows as lib
from cgrpo_jax.training.critic_rows import CriticTraining, advantages, critic_rows, judged, worth
from cgrpo_jax.training.row_losses import rco_loss

RCO = CriticTraining("rco", "policy", beta=0.5, verdict_weight=0.0)
GRADIENT = CriticTraining("policy_gradient", "policy", beta=0.1, verdict_weight=0.5)
PROBLEM = Problem(0, "2 + 2?", "4")


def critique(response, number, verdict, **fields):
    at = response.index.replace(stage=Stage.CRITIQUE, critique=number)
    return rollout(at, f"critique {number}", prompt=(8, response.index.response, 2), parent=response, **fields).replace(
        verdict=verdict
    )


def refinements(of, rewards):
    at = of.index.replace(stage=Stage.REFINEMENT)
    made = [(at.replace(refinement=number), reward) for number, reward in enumerate(rewards)]
    return [rollout(i, prompt=(9,), parent=of, reward=reward or 0.0, ungraded=reward is None) for i, reward in made]


def solved(*responses):
    """Returns a question: of each response its reward, and of each of its critiques (verdict, rewards achieved)."""
    rows, critiques, refined = [], [], []
    for number, (reward, said) in enumerate(responses):
        rows.append(rollout(RowIndex(0, number), reward=reward or 0.0, ungraded=reward is None))
        for place, (verdict, achieved) in enumerate(said):
            critiques.append(critique(rows[-1], place, verdict))
            refined += refinements(critiques[-1], achieved)
    return Solved(rows, refined, collections.Counter(), critiques, PROBLEM)


def test_what_a_refinement_is_worth():
    assert [worth(*case) for case in ((True, False), (True, True), (False, False), (False, True))] == [1, 0.5, 0.5, 0]


def test_utility_and_verdict_of_each_critique():
    """Of a wrong response: both fixed, one of two, none. Of a right one: broken, kept; a verdict that can't be read."""
    question = solved(
        (0.0, [(False, [1.0, 1.0]), (True, [1.0, 0.0]), (None, [0.0, 0.0])]), (1.0, [(False, [0.0]), (True, [1.0])])
    )
    found = judged([question], pass_threshold=1.0)
    assert [one.utility for one in found] == [1.0, 0.75, 0.5, 0.0, 0.5]
    assert [one.verdict_reward for one in found] == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert [one.critique for one in found] == question.critiques
    numbers = lib.metrics(lib.CriticRows(found, [], []))
    expected = {"utility": 2.75 / 5, "fix_rate": 3 / 6, "break_rate": 1 / 2, "verdict_accuracy": 2 / 5}
    assert numbers == pytest.approx({f"critic/{name}": value for name, value in expected.items()})


def test_what_is_not_known_is_left_out():
    """A refinement whose grader failed says nothing, and nor does what a rule says, or is said of a refinement."""
    question = solved((0.0, [(False, [None, 1.0]), (True, [None])]), (None, [(True, [1.0])]))
    by_rule = critique(question.responses[0], 2, False, author=Author.RULE).replace(prompt_ids=np.zeros(0, np.int32))
    of_refinement = rollout(RowIndex(0, 0, 0, 1, Stage.CRITIQUE), parent=question.refinements[0])
    question.critiques.extend([by_rule, of_refinement])
    found = judged([question], pass_threshold=1.0)
    assert [(one.utility, one.verdict_reward) for one in found] == [(1.0, 1.0), (None, 0.0), (None, None)]
    assert critic_rows([question], RCO).groups == []  # one alone is compared with none


def test_advantages_by_hand():
    """exp(2) and exp(0): log Z = log 4.19453 = 1.43378. Of rewards 1.5, 0.5 and 1, the mean is 1."""
    (v,) = advantages([[1.0, 0.0]], RCO)
    np.testing.assert_allclose(v, [2 - np.log((np.exp(2) + 1) / 2), -np.log((np.exp(2) + 1) / 2)], rtol=1e-14)
    (a,) = advantages([[1.5, 0.5, 1.0]], GRADIENT)
    np.testing.assert_allclose(a, [0.5, -0.5, 0.0], rtol=1e-14)


@pytest.mark.parametrize("training", [RCO, GRADIENT], ids=lambda one: one.loss)
@pytest.mark.parametrize("reward", [0.0, 0.1, 1 / 3, 1.7])
@pytest.mark.parametrize("number", [2, 3, 7])
def test_equal_rewards_have_advantages_of_exactly_0(training, reward, number):
    (a,) = advantages([[reward] * number], training)
    assert (a == 0).all()


def test_rows_of_a_refined_and_of_an_unrefined_response():
    """R = U + 0.5 V of the wrong one: 1.5, 0.75, 0.5. The right one is not refined: by its verdicts, 0.5 and 0."""
    question = solved(
        (0.0, [(False, [1.0, 1.0]), (True, [1.0, 0.0]), (None, [0.0, 0.0])]), (1.0, [(True, []), (False, [])])
    )
    found = critic_rows([question], GRADIENT)
    mean = (1.5 + 0.75 + 0.5) / 3
    expected = [[1.5 - mean, 0.75 - mean, 0.5 - mean], [0.25, -0.25]]
    for group, row, want in zip(found.groups, found.rows, expected, strict=True):
        np.testing.assert_allclose([one.advantage for one in row], np.float32(want), rtol=1e-12)
        for one, trained in zip(group, row, strict=True):
            assert trained.loss == LossKind.POLICY and not trained.refined
            np.testing.assert_array_equal(trained.context_ids, one.critique.prompt_ids)
            np.testing.assert_array_equal(trained.target_ids, one.critique.token_ids)
    without = critic_rows([question], RCO)
    assert [len(group) for group in without.groups] == [3]  # w is 0: verdicts alone train nothing
    assert {row.loss for group in without.rows for row in group} == {LossKind.RCO}


def test_the_verdict_adds_what_it_weighs_to_the_target():
    """The optimum is p exp((U + w V) / beta) / Z: between two critiques the targets differ by that of their rewards."""
    question = solved((0.0, [(False, [1.0]), (True, [1.0])]))
    training = CriticTraining("rco", "policy", beta=0.5, verdict_weight=0.3)
    (group,) = critic_rows([question], training).rows
    (v,) = advantages([[1.3, 1.0]], training)
    np.testing.assert_allclose(v[0] - v[1], 0.3 / 0.5, rtol=1e-12)
    np.testing.assert_allclose(np.mean(np.exp(v)), 1, rtol=1e-12)
    np.testing.assert_array_equal([row.advantage for row in group], np.float32(v))


LENGTHS = np.array([4, 2, 3])
TARGETS = [[1.0, 0.5, 0.0]]


def log_probabilities():
    rng = np.random.default_rng(3)
    return jnp.asarray(-rng.exponential(1.0, (3, 4)) - 0.1), jnp.asarray(np.arange(4) < LENGTHS[:, None])


def test_the_first_update_of_rco_is_reinforce_by_its_targets():
    """Where p is the critic that wrote them, the gradient is -v_i / N at each of its tokens, and the value v^2 / 2N."""
    with jax.enable_x64(True):
        logp, mask = log_probabilities()
        (v,) = advantages(TARGETS, RCO)
        every = jnp.ones(3, bool)
        value, gradient = jax.value_and_grad(lambda x: rco_loss(x, logp, jnp.asarray(v), every, mask, num_rows=3)[0])(
            logp
        )
        np.testing.assert_allclose(value, np.sum(v**2) / 6, rtol=1e-14)
        np.testing.assert_allclose(gradient, np.where(mask, -v[:, None] / 3, 0.0), rtol=1e-14)


@pytest.mark.parametrize("moved", [0.0, 0.1], ids=["first", "later"])
def test_the_gradient_of_policy_gradient_by_hand(moved):
    """Of token t of critique i: -(r A_i - beta (1 - 1/r)) / (N T), r = exp(moved): the KL term is k3's to p."""
    with jax.enable_x64(True):
        old, mask = log_probabilities()
        (a,) = advantages(TARGETS, GRADIENT)

        def loss(x):
            return objective.policy_loss(
                x, old, jnp.asarray(a), mask, jnp.zeros(3, bool), max_length=4, num_rows=3, ref_logp_BT=old,
                kl_coef=GRADIENT.beta, kl="k3",
            )[0]  # fmt: skip

        r = np.exp(moved)
        expected = -(r * a[:, None] - GRADIENT.beta * (1 - 1 / r)) / 12
        np.testing.assert_allclose(jax.grad(loss)(old + moved), np.where(mask, expected, 0.0), rtol=1e-9, atol=1e-15)
