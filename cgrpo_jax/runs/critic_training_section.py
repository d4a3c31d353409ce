"""The section of a configuration that says how a critic learns beside the policy, and which keys go with that."""

import dataclasses
from typing import ClassVar, Literal

from cgrpo_jax.runs.keys import Need, at_least_one, key, not_negative, one_of, positive
from cgrpo_jax.training.critic_rows import LOSSES, WEIGHTS

_NOT_TRAINED = {"critic.train": (False,)}
_NO_RATIO = {"critic.training.loss": ("rco",)}
_NO_ADAPTER = {"critic.training.weights": ("policy", "model")}


def _learning(other: str, allowed: str, because: str) -> Need:
    """Returns what learning needs: a critic that has learnt is also evaluated, or asked, otherwise."""
    return Need("critic.train", (True,), other, (allowed,), because, of_training=True)


@dataclasses.dataclass(frozen=True)
class CriticTraining:
    """How a critic that learns (critic.train) does: by R = U + w V of each critique, its utility and its verdict's."""

    loss: Literal["rco", "policy_gradient"] = key(
        "rco",
        "rco: regression on the optimum of E[R] - beta KL; policy_gradient: of the same, with a clipped ratio",
        one_of(*LOSSES),
        unread_with=_NOT_TRAINED,
    )
    weights: Literal["policy", "adapter", "model"] = key(
        "policy",
        "whose are trained: policy, its own, shared; adapter, one on the policy's own; model, those of critic.folder",
        one_of(*WEIGHTS),
        unread_with=_NOT_TRAINED,
    )
    beta: float = key(
        0.1,
        "[beta] of the KL term to the critic that wrote the iteration's critiques: the larger, the less it moves",
        positive("can't divide", "0.1"),
        unread_with=_NOT_TRAINED,
    )
    verdict_weight: float = key(
        0.5,
        "[w] of the reward of a critique's verdict, 1 where it agrees with the verifier, beside its utility",
        not_negative,
        unread_with=_NOT_TRAINED,
    )
    # Of a token's ratio, as here: those of objective.* may be of a sequence's, which are a thousand times closer.
    clip_low: float = key(
        0.2,
        "of policy_gradient: a token's ratio stays above 1 - clip_low",
        not_negative,
        unread_with=(_NOT_TRAINED, _NO_RATIO),
    )
    clip_high: float = key(0.2, "and below 1 + clip_high", not_negative, unread_with=(_NOT_TRAINED, _NO_RATIO))
    learning_rate: float = key(
        1e-6, "of the critic, the peak of optimizer.schedule", not_negative, unread_with=_NOT_TRAINED
    )
    num_updates: int = key(2, "of an iteration, each on all of its critiques", at_least_one, unread_with=_NOT_TRAINED)
    rank: int = key(16, "of the adapter, on all projections", at_least_one, unread_with=(_NOT_TRAINED, _NO_ADAPTER))
    alpha: float = key(
        32.0,
        "the adapter's product is multiplied by alpha / rank",
        positive("adapts nothing", "32"),
        unread_with=(_NOT_TRAINED, _NO_ADAPTER),
    )

    # Where a key has one of these values, another must have one of those.
    NEEDS: ClassVar = (
        _learning("critique.kind", "cot", "a rule that writes critiques learns nothing"),
        _learning("refine.kind", "policy", "it learns from what refinements achieve"),
        _learning("reward_source", "verifier", "it would be rewarded by itself"),
        _learning("critique.corruption", "none", "what is shown would not be what it wrote"),
        Need("critic.training.weights", ("policy", "adapter"), "critic.kind", ("policy",), "they are the policy's"),
        Need("critic.training.weights", ("model",), "critic.kind", ("folder",), "they are of a folder"),
        Need("critic.training.weights", ("adapter",), "lora.rank", (0,), "one adapter can't lie on another"),
    )
