"""The section of a configuration that says what is distilled from feedback, and which keys go together."""

import dataclasses
from typing import ClassVar, Literal

from cgrpo_jax.ratios import DIVERGENCES
from cgrpo_jax.runs.keys import Need, at_least_one, key, one_of, positive, share

_NO_TEACHER = {"distil.kind": ("none",)}


@dataclasses.dataclass(frozen=True)
class Distil:
    """Distillation from feedback: responses, scored by a teacher that has seen their critiques (SDPO)."""

    kind: Literal["none", "added", "alone"] = key(
        "none",
        "none; added: to the policy loss; alone: in its place, so that no refinement is needed",
        one_of("none", "added", "alone"),
    )
    which: Literal["failed", "all"] = key(
        "failed",
        "of the responses that have a critique: failed, or all, those that pass too",
        one_of("failed", "all"),
        unread_with=_NO_TEACHER,
    )
    coef: float = key(
        1.0,
        "of its term, on the scale of objective.aggregate",
        positive("distils nothing", "1.0"),
        unread_with=_NO_TEACHER,
    )
    divergence: str = key(
        "reverse_kl",
        "of the policy from the teacher: reverse_kl, jensen_shannon",
        one_of(*DIVERGENCES),
        unread_with=_NO_TEACHER,
    )
    top_tokens: int = key(
        20,
        "tokens that both are compared by, the policy's most likely ones; all others are one more",
        at_least_one,
        unread_with=_NO_TEACHER,
    )
    teacher: Literal["policy", "average"] = key(
        "policy",
        "whose weights it has: policy, as they are before an iteration's updates; average, their exponential mean",
        one_of("policy", "average"),
        unread_with=_NO_TEACHER,
    )
    average_rate: float = key(
        0.05,
        "of that mean: the share of the new weights after each update",
        positive("keeps the first weights for ever", "0.05"),
        share,
        unread_with=(_NO_TEACHER, {"distil.teacher": ("policy",)}),
    )

    # Where a key has one of these values, another must have one of those.
    NEEDS: ClassVar = (
        Need("distil.kind", ("alone",), "refine.kind", ("none",), "what is refined would train nothing"),
        Need("distil.kind", ("alone",), "objective.kl_coef", (0.0,), "that is a term of the policy loss"),
        Need("distil.kind", ("alone",), "objective.entropy_coef", (0.0,), "that is a term of the policy loss"),
        Need("distil.kind", ("alone",), "objective.tis_cap", (0.0,), "there is no ratio that it could weigh"),
        Need("distil.kind", ("alone",), "critique.when", ("all",), "nothing is refined, so no response has a critique"),
        Need(
            "distil.kind",
            ("added", "alone"),
            "critique.kind",
            ("cot", "indicative", "indicative_gt", "execution", "checklist"),
            "a teacher sees what is wrong with a response",
        ),
    )
