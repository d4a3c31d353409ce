"""The section of a configuration that says what an update maximises, and which of its keys go together."""

import dataclasses
from typing import ClassVar

from cgrpo_jax import objective
from cgrpo_jax.ratios import INITIAL_RATIOS, REFINED_RATIOS, SAMPLER_WEIGHTS
from cgrpo_jax.runs.keys import Need, key, not_negative, one_of, positive, share

_NOT_REFINED = {"refine.kind": ("none",)}
_ALONE = {"distil.kind": ("alone",)}  # no response has a ratio or an advantage that trains
_NOT_CLIPPED = {"objective.clip_refined": (False,)}
_NOT_SHAPED = {"objective.refined_ratio": ("importance", "plain", "logp")}
# Of responses clip_initial alone says whether they are clipped; those of cispo have no lower bound.
_NO_UPPER_BOUND = tuple(
    {"objective.clip_initial": (False,), **refined}
    # Of refinements, what is at most 1 does not reach an upper bound.
    for refined in (_NOT_REFINED, _NOT_CLIPPED, {"objective.refined_ratio": ("shaped", "plain", "logp")})
)
_NO_LOWER_BOUND = tuple(
    {**initial, **refined}
    for initial in ({"objective.clip_initial": (False,)}, {"objective.initial_ratio": ("cispo",)})
    for refined in (_NOT_REFINED, _NOT_CLIPPED)
)


def _cap(name: str, value: float) -> str | None:
    if value == 0 or value >= 1:
        return None
    return f"{name} {value} would change rows that sampler and trainer agree on; use 1 or more, or 0 for no weight."


@dataclasses.dataclass(frozen=True)
class Objective:
    """What an update maximises: Eq. 3 and 4 of the paper."""

    initial_ratio: str = key(
        "token",
        "of responses: token, pi / pi_old; sequence, one of a whole response (GSPO); cispo, capped and held fixed",
        one_of(*INITIAL_RATIOS),
        unread_with=_ALONE,
    )
    refined_ratio: str = key(
        "shaped",
        "of refinements: shaped, pi / (pi + gamma); importance, pi / pi_old; plain, pi; logp, log pi",
        one_of(*REFINED_RATIOS),
        unread_with=_NOT_REFINED,
    )
    gamma: float = key(
        0.1,
        "[gamma] shaping constant",
        positive("makes the shaped ratio 1", "0.1"),
        unread_with=(_NOT_REFINED, _NOT_SHAPED),
    )
    baseline: str = key(
        "group",
        "the mean that rewards are relative to: group, of all its rows; initial, of its responses alone (RLTF-SD)",
        one_of(*objective.BASELINES),
        unread_with=_NOT_REFINED,
    )
    scale_by_std: bool = key(False, "divide advantages by the group's standard deviation", unread_with=_ALONE)
    mask_truncated: bool = key(False, "what was cut off trains nothing, but is in the baseline (DAPO)")
    length_penalty: float = key(
        0.0,
        "taken from the reward at max_response_length, of groups whose rewards are not all equal (DAPO); 0: none",
        not_negative,
        unread_with=_ALONE,
    )
    length_penalty_share: float = key(
        0.2,
        "of max_response_length: the last tokens, over which it rises",
        positive("leaves no tokens for it to rise over", "0.2"),
        share,
        unread_with=({"objective.length_penalty": (0.0,)}, _ALONE),
    )
    clip_low: float = key(
        0.2, "[eps] ratios stay above 1 - clip_low", not_negative, unread_with=(*_NO_LOWER_BOUND, _ALONE)
    )
    clip_high: float = key(0.2, "[eps] and below 1 + clip_high", not_negative, unread_with=(*_NO_UPPER_BOUND, _ALONE))
    # Departure: the paper's equations clip both, the released code neither.
    clip_initial: bool = key(True, "clip the ratio of responses", unread_with=_ALONE)
    clip_refined: bool = key(
        False,
        "clip that of refinements (Eq. 4): takes all gradient from wrong ones' tokens of pi < 0.4",
        unread_with=_NOT_REFINED,
    )
    # Departure: "constant", as in the released code; Eq. 3 and 4 are "paper".
    aggregate: str = key(
        "constant", "constant, paper (Eq. 3 and 4), token_mean, sequence_mean", one_of(*objective.AGGREGATES)
    )
    kl_coef: float = key(0.0, "of the KL term; 0: no reference model", not_negative)
    kl: str = key(
        "k3",
        "its estimator, of log pi - log pi_ref: k1, itself; k2, half its square; k3",
        one_of(*objective.KL_ESTIMATORS),
        unread_with={"objective.kl_coef": (0.0,)},
    )
    # Departure: 0.001 of a token mean a microbatch in the released code.
    entropy_coef: float = key(
        0.0, "of the entropy bonus, on the scale of aggregate: with constant, a row's sum / max_response_length"
    )
    old_logp: str = key(
        "sampler",
        "whose log-probabilities are the old ones: sampler; trainer: computed again before the update",
        one_of("sampler", "trainer"),
    )
    tis_cap: float = key(
        0.0,
        "most that responses are weighed by, pi_trainer,old / pi_sampler, as 2; pi_old is the trainer's; 0: none",
        _cap,
    )
    tis_level: str = key(
        "token",
        "of tis_cap: token; sequence_mask, of a whole response, which beyond the cap trains nothing",
        one_of(*SAMPLER_WEIGHTS),
        unread_with={"objective.tis_cap": (0.0,)},
    )

    # Where a key has one of these values, another must have one of those.
    NEEDS: ClassVar = (
        Need(
            "objective.refined_ratio",
            ("importance",),
            "objective.old_logp",
            ("trainer",),
            "the sampler saw the critique, and pi_old is of the question alone",
            unless="objective.tis_cap",
        ),
        Need(
            "objective.refined_ratio",
            ("plain", "logp"),
            "objective.clip_refined",
            (False,),
            "it is no ratio that a clip around 1 could hold",
        ),
        Need(
            "objective.initial_ratio",
            ("cispo",),
            "objective.clip_initial",
            (True,),
            "its cap is 1 + objective.clip_high",
        ),
        Need(
            "objective.baseline",
            ("initial",),
            "objective.scale_by_std",
            (False,),
            "the deviation is of the whole group",
        ),
        Need("normalize_rewards", (True,), "objective.scale_by_std", (False,), "each is divided by its own deviation"),
        Need("normalize_rewards", (True,), "objective.length_penalty", (0.0,), "a penalty has no deviation of its own"),
        Need(
            "objective.baseline",
            ("initial",),
            "refine.group",
            ("append",),
            "replaced responses would be missing in it",
        ),
    )
