"""The sections of a configuration that say who criticises, what is said, what is refined, and which keys go together.

Symbols in brackets are the paper's (arXiv 2506.03106). Lengths are in tokens.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar, Literal

from cgrpo_jax.critiques import schedule, texts
from cgrpo_jax.inference import chat_protocol
from cgrpo_jax.runs.critic_training_section import CriticTraining
from cgrpo_jax.runs.endpoint_section import Endpoint
from cgrpo_jax.runs.keys import Need, at_least_one, key, not_negative, one_of, refused, section, share
from cgrpo_jax.runs.sections import arguments_rule

CRITIQUES = ("indicative", "indicative_gt", "execution", "cot")
KINDS = (*CRITIQUES, "checklist", "hint", "none")
_NOT_REFINED = {"refine.kind": ("none",)}
_BY_RULE = ("indicative", "indicative_gt", "execution", "checklist")
_NOT_WRITTEN = {"critique.kind": (*_BY_RULE, "none"), "critique.schedule": ((),)}
_NOT_EXECUTED = {"critique.kind": ("indicative", "indicative_gt", "cot", "hint", "none"), "critique.schedule": ((),)}
_ITSELF = {"refiner.folder": ("",)}
_NO_POLICY = {"refine.kind": ("none", "solution")}
# Refinements see critiques, and teachers.
_NOT_SHOWN = ({**_NO_POLICY, "distil.kind": ("none",)}, {"critique.kind": ("none",), "critique.schedule": ((),)})
# A question has one solution, beside which no k of them is in the mean of aggregate "paper".
_NOT_CHOSEN = (
    _NOT_REFINED,
    {"refine.kind": ("solution",), "objective.aggregate": ("constant", "token_mean", "sequence_mean")},
)


def _temperature(name: str, value: float) -> str | None:
    if value >= 0 or value == -1:
        return None
    return f"{name} {value} is no temperature; use 0 or more, or -1 for that of sampling.temperature."


@dataclasses.dataclass(frozen=True)
class Critic:
    """Who writes critiques of critique.kind cot."""

    kind: Literal["policy", "folder", "endpoint"] = key(
        "policy",
        "policy: the policy critiques itself; folder: a frozen model; endpoint: a model behind one",
        one_of("policy", "folder", "endpoint"),
    )
    folder: str = key("", "Hugging Face folder of a frozen critic", is_path=True)
    endpoint: Endpoint = section(Endpoint)
    sees: Literal["nothing", "answer", "solution"] = key(
        "nothing",
        "what it sees beside question and response: nothing; answer; solution, the data's own, and the answer",
        one_of("nothing", "answer", "solution"),
        unread_with=_NOT_WRITTEN,
    )
    temperature: float = key(
        -1.0,
        "of critiques; 0: the most likely tokens; -1: sampling.temperature",
        _temperature,
        unread_with=_NOT_WRITTEN,
    )
    top_p: float = key(0.0, "of critiques; 0: sampling.top_p", share, unread_with=_NOT_WRITTEN)
    template_arguments: str = key(
        "",
        "as prompts.template_arguments, of a critic; empty: none, of the policy as its own critic the policy's",
        arguments_rule,
    )
    max_length: int = key(
        1024, "tokens of a critique, its thinking included; 0: from its model's context", not_negative
    )
    max_prompt_length: int = key(9216, "tokens of what it is asked; 0: likewise", not_negative)
    train: bool = key(False, "it learns beside the policy, by what its critiques achieve (critic.training)")
    training: CriticTraining = section(CriticTraining)

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        for kind, given, where in (
            ("folder", self.folder, "folder"),
            ("endpoint", self.endpoint.url, "endpoint.url"),
        ):
            if self.kind == kind and not given:
                yield f'{name}.kind "{kind}" needs {name}.{where}; give it, or set {name}.kind to "policy".'
            if self.kind != kind and given:
                said = chat_protocol.masked(given) if kind == "endpoint" else given
                yield (
                    f'{name}.{where} {said!r} is given, but {name}.kind is "{self.kind}"; set {name}.kind to "{kind}", '
                    f"or leave {name}.{where} empty."
                )
        if self.kind == "endpoint" and self.template_arguments:
            yield (
                f"{name}.template_arguments {self.template_arguments!r} is given, but the endpoint renders its chat "
                f"template itself; set them where it is served, and leave {name}.template_arguments empty."
            )


@dataclasses.dataclass(frozen=True)
class Refiner:
    """Who refines, of refine.kind policy: the policy itself, or a frozen model (weak to strong)."""

    folder: str = key(
        "",
        "Hugging Face folder of a frozen model that refines in training and collect; empty: the policy does",
        is_path=True,
        unread_with=_NO_POLICY,
    )
    temperature: float = key(
        -1.0,
        "of a frozen refiner; 0: the most likely tokens; -1: sampling.temperature",
        _temperature,
        unread_with=(_NO_POLICY, _ITSELF),
    )
    top_p: float = key(0.0, "of a frozen refiner; 0: sampling.top_p", share, unread_with=(_NO_POLICY, _ITSELF))
    template_arguments: str = key(
        "",
        "as prompts.template_arguments, of a frozen refiner; empty: none",
        arguments_rule,
        unread_with=(_NO_POLICY, _ITSELF),
    )


def _schedule(name: str, value: Any) -> str | None:
    return refused(schedule.check, value, KINDS)


@dataclasses.dataclass(frozen=True)
class Critique:
    """The words about responses that refinements see."""

    kind: str = key(
        "cot",
        "indicative, indicative_gt, execution, cot; checklist: the items of the rubric that the judge finds not met; "
        "hint: of the answer, without the response (NuRL); none: refine without a critique",
        one_of(*KINDS),
    )
    schedule: tuple[tuple[int, str], ...] = key(
        (), 'other kinds from given iterations on: ((0, "indicative_gt"), (100, "cot"))', _schedule
    )
    when: str = key("refining", "refining: of what is refined; all: of all responses", one_of("refining", "all"))
    num_per_response: int = key(1, "critiques of a response", at_least_one)
    max_retries: int = key(
        2,
        "of a cot critique whose verdict is malformed or disagrees with the grader, or of a hint that says nothing; "
        "critic.train: none, all are shown as they are",
        not_negative,
        unread_with=(_NOT_WRITTEN, {"critic.train": (True,)}),
    )
    step_checker: str = key(
        "equations",
        "of execution: equations, or chain, which knows the steps that the question asks for",
        one_of("equations", "chain"),
    )
    reveals_value: bool = key(
        True,
        "of execution and checklist; False: the wrong step, or the failing test, without what is expected",
        unread_with=_NOT_EXECUTED,
    )
    corruption: str = key(
        "none",
        "what refinements see is made wrong, as a control: inverted, the verdict; shuffled, the order of the words; "
        "another, what was said of a response in critique.others",
        one_of("none", *texts.CORRUPTIONS, texts.ANOTHER),
        unread_with=_NOT_SHOWN,
    )
    corrupted_share: float = key(
        1.0,
        "of the critiques, at random",
        share,
        unread_with=({"critique.corruption": ("none",)}, *_NOT_SHOWN),
    )
    others: str = key(
        "",
        "of critique.corruption another: rows collected before (folder of step_*.parquet), of whose critiques of wrong "
        "responses one is drawn each time",
        unread_with=({"critique.corruption": ("none", *texts.CORRUPTIONS)}, *_NOT_SHOWN),
        is_path=True,
    )

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if self.corruption == texts.ANOTHER and not self.others:
            yield f'{name}.corruption "another" shows other critiques; give rows that hold some in {name}.others.'


@dataclasses.dataclass(frozen=True)
class Refine:
    """What becomes of failed responses."""

    kind: str = key(
        "policy",
        "policy: it, or refiner.folder, refines; solution: insert the data's own (an ablation); none: plain GRPO",
        one_of("policy", "solution", "none"),
    )
    max_pass: float = key(
        0.0, "refine a question if at most this share of its responses pass", share, unread_with=_NOT_REFINED
    )
    which: Literal["failed", "all"] = key(
        "failed",
        "of its responses: failed, or all, those that pass too",
        one_of("failed", "all"),
        unread_with=_NOT_REFINED,
    )
    per_critique: int = key(1, "refinements of a critique", at_least_one, unread_with=_NO_POLICY)
    num_kept: int = key(1, "[k] refinements kept per question", at_least_one, unread_with=_NOT_CHOSEN)
    select: Literal["best", "random"] = key(
        "best",
        "which: best, of the highest reward, ties at random; random",
        one_of("best", "random"),
        unread_with=_NO_POLICY,
    )
    group: Literal["append", "replace"] = key(
        "append",
        "append: they stand beside the n responses; replace: in the places of as many, so that a group has n rows",
        one_of("append", "replace"),
        unread_with=_NOT_REFINED,
    )
    max_prompt_length: int = key(
        10240, "tokens of what a refinement answers; 0: from the model's context", not_negative
    )
    drop_critique_mentions: bool = key(
        False, "drop refinements that mention the critique before selection", unread_with=_NOT_REFINED
    )

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if self.kind != "none" and self.which == "all" and not self.max_pass:
            yield (
                f'{name}.which "all" is of responses that pass too, but {name}.max_pass 0 refines no question that has '
                f'one; set {name}.max_pass, up to 1, or {name}.which to "failed".'
            )

    # Where a key has one of these values, another must have one of those.
    NEEDS: ClassVar = (
        Need(
            "refine.group",
            ("replace",),
            "objective.aggregate",
            ("constant", "token_mean", "sequence_mean"),
            "Eq. 3 divides by n responses, some of which are replaced",
        ),
        Need("critique.kind", ("hint",), "critique.corruption", ("none", "shuffled"), "a hint has no verdict"),
        Need(
            "critique.corruption",
            ("inverted", "shuffled", "another"),
            "reward_source",
            ("verifier",),
            "what is wrong on purpose would be a reward",
        ),
    )


def violations_of_learning(critic: Critic, critique: Critique, refine: Refine) -> Iterator[str]:
    """Yields what sections have against a critic that learns (critic.train), each in one line; nothing without one."""
    if not critic.train:
        return
    if critique.num_per_response < 2:
        yield (
            "critic.train compares critiques of one response, but critique.num_per_response is "
            f"{critique.num_per_response}; use at least 2, such as 4."
        )
    if critic.temperature == 0:
        yield (
            "critic.temperature 0 writes the same critique of a response each time, so that critic.train has none to "
            "compare; use 1, or -1 for that of sampling.temperature."
        )
    weight = critic.training.verdict_weight
    if weight and critique.when == "refining" and refine.which == "failed":
        yield (
            f"critic.training.verdict_weight {weight:g} rewards verdicts on failed responses alone, and so to call all "
            'of them wrong; set critique.when to "all", or it to 0.'
        )
