"""What a critic's updates move, of weights that the policy has moved since its critiques were scored."""

import dataclasses

import jax
import numpy as np
import optax
import pytest
import train_step_cases as cases

from cgrpo_jax import sharding
from cgrpo_jax.models import lora
from cgrpo_jax.records import LossKind
from cgrpo_jax.runtime import console
from cgrpo_jax.training import critic_learner
from cgrpo_jax.training.critic_rows import CriticRows
from cgrpo_jax.training.learner import Learner, LearnerSettings
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.train_step import LossSettings

ADAPTER = lora.LoraSettings(rank=2, alpha=2.0, targets=tuple(lora.TARGETS))
EQUAL, DIFFERENT = (0.0, 0.0), (0.7, -0.4)
LOSSES = {"rco": LossKind.RCO, "policy_gradient": LossKind.POLICY}


def critic_of(weights, loss):
    """Returns a critic that shares the policy's weights, or is an adapter on them, and the policy's state."""
    settings = LearnerSettings(
        optimizer=optax.sgd(1.0),
        learning_rate=optax.constant_schedule(1.0),
        loss=LossSettings(max_length=8, kl_coef=0.0 if loss == "rco" else 0.1),
        shape=PackShape(num_token_rows=2, pack_length=24, num_slots=5, from_rows=loss == "rco"),
        updates_per_batch=2,
        rescore=True,
        remat="none",
        max_nonfinite_updates=3,
        adapters=ADAPTER if weights == "adapter" else None,
        proximal=True,
    )
    mesh = sharding.one_device()
    learner = Learner(cases.CONFIG, mesh=mesh, dtype="float32", settings=settings, clock=console.Clock())
    policy = cases.fresh_state()
    own = lora.init_adapters(cases.CONFIG, ADAPTER, seed=1) if weights == "adapter" else None
    state = critic_learner.init_state(policy, own, settings)
    return critic_learner.CriticLearner(learner, weights=weights, state=state), policy


def rows_of(loss, *groups):
    rng = np.random.default_rng(0)
    rows = [
        [cases.make_row(rng, 4 + n, 5, loss=LOSSES[loss], advantage=target) for n, target in enumerate(group)]
        for group in groups
    ]
    return CriticRows([], [], rows)


def learnt(weights, loss, *groups):
    """Returns all weights before and after a critic's updates, with the policy moved between score and update."""
    critic, policy = critic_of(weights, loss)
    scored = critic.score(policy, rows_of(loss, *groups))
    moved = dataclasses.replace(policy, params=jax.tree.map(lambda x: x * 1.05, policy.params))
    before = jax.device_get((moved.params, critic.state))
    after, updates = critic.update(moved, scored)
    return before, jax.device_get((after.params, critic.state)), updates


def are_equal(one, other):
    ours, theirs = jax.tree.leaves(one), jax.tree.leaves(other)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("weights", ["policy", "adapter"])
def test_equal_rewards_move_nothing(weights, loss):
    """Neither weights nor the optimiser's state, bitwise: no update is made, although the policy has moved."""
    before, after, updates = learnt(weights, loss, EQUAL, EQUAL)
    assert are_equal(before, after) and updates.stats == updates.trained == []


@pytest.mark.parametrize("weights, loss", [("policy", "rco"), ("adapter", "policy_gradient")])
def test_a_group_of_equal_rewards_adds_nothing_to_another(weights, loss):
    _, alone, _ = learnt(weights, loss, DIFFERENT)
    before, beside, updates = learnt(weights, loss, DIFFERENT, EQUAL)
    assert are_equal(alone, beside) and not are_equal(before, beside)
    assert updates.trained == [[True, True]] and len(updates.stats) == 2
