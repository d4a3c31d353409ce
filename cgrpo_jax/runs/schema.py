"""The configuration of a run: the keys without a section, and which sections there are.

Each key is here once, or in a section of a file that is named after its sections, with its default, help and rule. A
rule of one section is in that section (`violations`), one of several is here, or in a table of what needs what
(`NEEDS`).
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from cgrpo_jax.critiques import schedule
from cgrpo_jax.datasets.problems import MADE_UP
from cgrpo_jax.rewards import grader, user_functions
from cgrpo_jax.runs import (
    collection_section,
    distillation_section,
    finetune_section,
    model_sections,
    objective_section,
    refinement_sections,
    sections,
    training_sections,
)
from cgrpo_jax.runs.keys import ALL, at_least_one, at_most, each_of, key, not_negative, one_of, refused, section

# Sections that no other command than `train`, `finetune` and `plan` reads.
TRAINING_ALONE = ("checkpoints", "rollouts", "tracking", "profile", "objective", "distil", "optimizer", "packing")
TRAINING_ALONE += ("finetune",)
# Of these, and of the others, sections and keys that `finetune` does not read, and what it alone reads.
NOT_FINETUNING = (
    "rollouts",
    "objective",
    "distil",
    "critique",
    "refine",
    "refiner",
    "questions_per_iteration",
    "max_extra_questions",
    "verdict_share",
    "critic.train",
    "num_responses",
    "optimizer.updates_per_batch",
    "data.num_train",
    "data.mixture",
    "data.pass_rates",
    "data.min_pass_rate",
    "data.max_pass_rate",
)
FINETUNING_ALONE = ("finetune",)


def _several(name: str, value: tuple[Any, ...]) -> str | None:
    if not all(isinstance(kind, str) for kind in value):
        return f"{name} {value} must hold kinds of graders; quote them."
    names = [user_functions.short_name(kind) for kind in value]
    if len(set(names)) < len(names):
        return f"{name} {value} has two of one name, {max(names, key=names.count)!r}, in metrics; rename a function."
    said = (refused(grader.check_kind, kind) for kind in value)
    return next((f"{name}: {text}" for text in said if text), None)


def _numbers(name: str, value: tuple[Any, ...]) -> str | None:
    good = all(isinstance(one, int | float) and math.isfinite(one) for one in value)
    return None if good else f"{name} {value} must hold finite numbers; give one for each of rewards."


def _verdict_share(name: str, value: float) -> str | None:
    if 0 <= value <= 0.5:
        return None
    return f"{name} {value} asks about more responses than there are questions; use a value from 0 to 0.5."


@dataclasses.dataclass(frozen=True)
class Config:
    """What a run does. Symbols in brackets are the paper's (arXiv 2506.03106); lengths are in tokens."""

    # 32 bits: random keys are folded from such numbers.
    seed: int = key(0, "of all random numbers", not_negative, at_most(2**32 - 1, "does not fit 32 bits"))
    num_iterations: int = key(
        100,
        "one iteration: respond, critique, refine, update",
        not_negative,
        may_change=ALL,
        because="how long training goes on, unless the learning rate falls over them",
    )
    questions_per_iteration: int = key(128, "questions of an iteration", at_least_one)
    max_extra_questions: int = key(
        0,
        "most that are drawn beyond them, each for one whose group, refinements included, has no gradient (DAPO)",
        not_negative,
    )
    verdict_share: float = key(
        0.0,
        "of questions_per_iteration: is a response of this iteration right? (Critique-Coder)",
        _verdict_share,
    )
    num_responses: int = key(7, "[n] responses to a question", at_least_one)
    max_prompt_length: int = key(2048, "tokens of a question; 0: from the model's context (lengths.py)", not_negative)
    max_response_length: int = key(6144, "tokens of a response or a refinement; 0: likewise", not_negative)
    reward_source: str = key(
        "verifier",
        "who rewards: verifier, or critic, whose verdict is the reward (unsupervised)",
        one_of("verifier", "critic"),
    )
    pass_threshold: float = key(1.0, "a response whose reward is below it has failed")
    rewards: tuple[str, ...] = key(
        (),
        'several, each a kind of grader: ("math", "style.py:short"); empty: grader.kind alone',
        _several,
        is_path=True,
    )
    reward_weights: tuple[float, ...] = key((), "of each of rewards; empty: 1.0 each", _numbers)
    gate: str = key("", "of rewards, the one that decides what passes and is refined; empty: the first", is_path=True)
    normalize_rewards: bool = key(False, "divide each of rewards by its own deviation before they are added (GDPO)")

    trackers: tuple[str, ...] = key(
        ("tensorboard",),
        "where metrics are shown besides metrics.jsonl: tensorboard, wandb, trackio",
        each_of("tensorboard", "wandb", "trackio"),
        may_change=ALL,
        because="what is shown changes nothing",
    )

    checkpoints: sections.Checkpoints = section(sections.Checkpoints)
    rollouts: sections.Rollouts = section(sections.Rollouts)
    tracking: sections.Tracking = section(sections.Tracking)
    profile: sections.Profile = section(sections.Profile)
    prompts: sections.Prompts = section(sections.Prompts)
    sampling: sections.Sampling = section(sections.Sampling)
    engine: sections.Engine = section(sections.Engine)
    cache: sections.Cache = section(sections.Cache)
    grader: sections.Grader = section(sections.Grader)
    code: sections.Code = section(sections.Code)
    judge: sections.Judge = section(sections.Judge)
    critique: refinement_sections.Critique = section(refinement_sections.Critique)
    critic: refinement_sections.Critic = section(refinement_sections.Critic)
    refine: refinement_sections.Refine = section(refinement_sections.Refine)
    refiner: refinement_sections.Refiner = section(refinement_sections.Refiner)
    objective: objective_section.Objective = section(objective_section.Objective)
    distil: distillation_section.Distil = section(distillation_section.Distil)
    optimizer: training_sections.Optimizer = section(training_sections.Optimizer)
    packing: training_sections.Packing = section(training_sections.Packing)
    compute: model_sections.Compute = section(model_sections.Compute)
    mesh: model_sections.Mesh = section(model_sections.Mesh)
    model: model_sections.Model = section(model_sections.Model)
    lora: model_sections.Lora = section(model_sections.Lora)
    data: training_sections.Data = section(training_sections.Data)
    warm_start: training_sections.WarmStart = section(training_sections.WarmStart)
    finetune: finetune_section.Finetune = section(finetune_section.Finetune)
    eval: training_sections.Eval = section(training_sections.Eval)
    diagnosis: training_sections.Diagnosis = section(training_sections.Diagnosis)
    collect: collection_section.Collect = section(collection_section.Collect)

    @property
    def gate_kind(self) -> str:
        """The kind of grader that decides what passes."""
        return self.gate or (*self.rewards, self.grader.kind)[0]

    @property
    def other_rewards(self) -> tuple[str, ...]:
        """The kinds of rewards that add to the advantage alone."""
        return tuple(kind for kind in self.rewards if kind != self.gate_kind)

    @property
    def num_verdicts(self) -> int:
        """The questions of an iteration that ask whether a response is right."""
        return round(self.verdict_share * self.questions_per_iteration)

    @property
    def weights(self) -> tuple[float, ...]:
        """The weights of the gate and of the other rewards, in their order."""
        given = dict(zip(self.rewards, self.reward_weights, strict=False))
        return tuple(given.get(kind, 1.0) for kind in (self.gate_kind, *self.other_rewards))

    def violations(self) -> Iterator[str]:
        """Yields what keys of several sections have against each other."""
        yield from self._engine()
        yield from self._grading()
        yield from self._rewards()
        yield from self._verdicts()
        yield from self._critiques()
        yield from self._made_up()

    def training_violations(self) -> Iterator[str]:
        """Yields what they have against learning from what is generated.

        An evaluation of the run, say with other lengths, is not refused, nor is learning from rows.
        """
        yield from self._schedule()
        yield from self._updates()
        yield from self._teaches_nothing()
        yield from refinement_sections.violations_of_learning(self.critic, self.critique, self.refine)

    def _teaches_nothing(self) -> Iterator[str]:
        """Yields why all advantages would be 0, whatever the policy writes."""
        # Which may give any number, and another one each time.
        kinds = (self.gate_kind, *self.other_rewards)
        function = any(user_functions.is_name(kind) for kind in kinds if isinstance(kind, str))
        never_fails = self.pass_threshold <= 0 and not function
        if not self.num_iterations or not (self.refine.kind == "none" or never_fails):
            return
        if self.distil.kind != "none" and not never_fails:  # a teacher compares a response with no other
            return
        why = 'refine.kind is "none"' if self.refine.kind == "none" else (
            f"pass_threshold is {self.pass_threshold:g}, below which no reward is"
        )  # fmt: skip
        if self.num_responses == 1:
            yield (
                f"num_responses 1 teaches nothing: {why}, so each response is compared with itself alone, and its "
                "advantage is 0; use at least 2, or refine."
            )
        judged = "judge" in (self.gate_kind, *self.rewards)
        same_grade = not function and not judged and self.reward_source == "verifier"
        if self.num_responses > 1 and self.sampling.top_k == 1 and same_grade:
            yield (
                f"sampling.top_k 1 teaches nothing: {why}, and all {self.num_responses} responses to a question are "
                "the same, so their advantages are 0; use 0, or refine."
            )

    def _engine(self) -> Iterator[str]:
        slots, gib = self.engine.num_slots, self.cache.gib
        if not slots and not gib:
            yield "engine.num_slots 0 takes as many slots as cache.gib holds; set one of them."
        if slots and gib and self.cache.kind != "paged":
            yield f"engine.num_slots {slots} and cache.gib {gib:g} are both set; set one of them to 0."

    def _schedule(self) -> Iterator[str]:
        per_iteration = {"the run's": self.optimizer.updates_per_batch}
        if self.critic.train:  # with a rate of its own, over its own updates
            per_iteration["the critic's"] = self.critic.training.num_updates
        for whose, number in per_iteration.items():
            updates = self.num_iterations * number
            if self.optimizer.schedule != "constant" and 0 < updates <= self.optimizer.warmup_updates:
                yield (
                    f"optimizer.warmup_updates {self.optimizer.warmup_updates} leaves optimizer.schedule "
                    f"{self.optimizer.schedule!r} none of {whose} {updates} updates to fall over; use fewer."
                )

    def _updates(self) -> Iterator[str]:
        places = self.refine.kind == "policy" and self.refine.group == "replace"
        if places and self.refine.num_kept > self.num_responses:
            yield (
                f'refine.group "replace" puts refine.num_kept {self.refine.num_kept} refinements in the places of '
                f"num_responses {self.num_responses}; keep at most as many."
            )
        truncated = self.sampling.top_p < 1 or self.sampling.top_k > 0
        if truncated and self.objective.old_logp == "sampler" and not self.objective.tis_cap:
            yield (
                'sampling.top_p below 1 or sampling.top_k above 0 needs objective.old_logp "trainer"; set it, or '
                "sample untruncated."
            )

        questions, minibatches = self.questions_per_iteration, self.optimizer.updates_per_batch
        if minibatches >= 1 and questions % minibatches:
            divisors = [d for d in range(1, 65) if questions % d == 0]
            yield (
                f"optimizer.updates_per_batch {minibatches} does not divide questions_per_iteration {questions}; use "
                f"one of {', '.join(map(str, divisors))}."
            )
        longest = self.max_prompt_length + self.max_response_length - 1
        if 0 < self.packing.length < longest:
            yield (
                f"packing.length {self.packing.length} does not hold the longest prompt and response; use at least "
                f"{longest}, or 0."
            )

    def _grading(self) -> Iterator[str]:
        if self.grader.kind == "judge" and not self.judge.endpoint.url:
            yield 'grader.kind "judge" asks an endpoint; give its address in judge.endpoint.url.'
        if self.reward_source != "critic":
            return
        if self.critique_kinds() != {"cot"} or self.critique.when != "all":
            yield (
                'reward_source "critic" takes its rewards from verdicts; set critique.kind "cot" and critique.when '
                '"all".'
            )
        budget = self.critic.endpoint.max_requests or self.critic.endpoint.max_tokens
        if self.critic.kind == "endpoint" and budget:
            yield (
                'reward_source "critic" needs a verdict on every response, which critic.endpoint.max_requests and '
                "max_tokens end; set both to 0."
            )

    def _rewards(self) -> Iterator[str]:
        if self.reward_weights and len(self.reward_weights) != len(self.rewards):
            yield (
                f"reward_weights {self.reward_weights} are {len(self.reward_weights)} weights of {len(self.rewards)} "
                "rewards; give one for each of rewards."
            )
        if self.gate and self.gate not in self.rewards:
            yield f"gate {self.gate!r} is none of rewards {self.rewards}; use one of them, or leave it empty."
        if self.rewards and self.grader.kind not in ("math", *self.rewards):
            yield (
                f"grader.kind {self.grader.kind!r} is none of rewards {self.rewards}, which decide; add it to them, or "
                "leave grader.kind out."
            )
        if self.normalize_rewards and len(self.rewards) < 2:
            yield f"normalize_rewards divides each of several rewards, but rewards is {self.rewards}; give two or more."
        if self.reward_source == "critic" and self.rewards:
            yield (
                f'reward_source "critic" rewards by verdicts in the place of graders, but rewards is {self.rewards}; '
                'leave rewards empty, or set reward_source to "verifier".'
            )
        if "judge" in self.rewards and not self.judge.endpoint.url:
            yield 'rewards has "judge", which asks an endpoint; give its address in judge.endpoint.url.'
        if self.collect.utility == "judge" and not self.judge.endpoint.url:
            yield 'collect.utility "judge" asks an endpoint; give its address in judge.endpoint.url.'

    def _verdicts(self) -> Iterator[str]:
        if not 0 < self.verdict_share <= 0.5:  # its own rule says so
            return
        if not self.num_verdicts:
            yield (
                f"verdict_share {self.verdict_share:g} of questions_per_iteration {self.questions_per_iteration} is "
                "less than half a question; raise one of them."
            )
        if self.rewards:
            yield (
                f"verdict_share {self.verdict_share:g} rewards verdicts by one number, but rewards is {self.rewards}; "
                "leave rewards empty, or set verdict_share to 0."
            )
        if self.distil.kind == "alone":
            yield (
                f"verdict_share {self.verdict_share:g} trains verdicts by the policy loss, in whose place distil.kind "
                '"alone" is; set that to "added", or verdict_share to 0.'
            )
        if self.reward_source == "critic":
            yield (
                f"verdict_share {self.verdict_share:g} needs to know which responses are right, but reward_source is "
                '"critic"; set reward_source to "verifier", or verdict_share to 0.'
            )

    def critique_kinds(self) -> frozenset[str]:
        """Returns the kinds of critique that the run uses; without the schedule where that can't be read."""
        if refused(schedule.check, self.critique.schedule, refinement_sections.KINDS):
            return frozenset([self.critique.kind])
        return schedule.kinds(critique=self.critique.kind, schedule=self.critique.schedule)

    def _critiques(self) -> Iterator[str]:
        if self.critic.kind == "endpoint" and not schedule.WRITTEN & self.critique_kinds():
            yield (
                f'critic.kind "endpoint" needs critique.kind "cot", or "hint", not {self.critique.kind!r}; set one, or '
                'critic.kind "policy".'
            )
        asked = self.refine.kind == "policy" or self.critique.when == "all"
        if asked and "hint" in self.critique_kinds() and self.critic.sees != "answer":
            yield f'critique.kind "hint" is of the answer, but critic.sees is {self.critic.sees!r}; set it to "answer".'
        if self.distil.kind == "added" and self.refine.kind != "policy" and self.critique.when != "all":
            yield (
                f'distil.kind "added" needs critiques, which critique.when "refining" leaves out where refine.kind is '
                f'{self.refine.kind!r}; set critique.when to "all".'
            )
        refined_alone = self.critique.when == "refining" and self.refine.which == "failed"
        if self.distil.kind == "added" and self.distil.which == "all" and refined_alone:
            yield (
                'distil.which "all" is of responses that pass too, of which critique.when "refining" has no critique; '
                'set that to "all", or distil.which to "failed".'
            )
        if asked and "checklist" in self.critique_kinds():
            if self.gate_kind != "judge":
                yield (
                    'critique.kind "checklist" names the items of a rubric, but responses are graded by '
                    f'{self.gate_kind!r}; set grader.kind to "judge", or gate where there are several rewards.'
                )
            if self.judge.mode == "implicit":
                yield (
                    'critique.kind "checklist" names the items of a rubric, but judge.mode "implicit" rules on none; '
                    'set it to "explicit".'
                )
        if self.critique.step_checker == "chain" and self.data.kind != "chains":
            yield (
                f'critique.step_checker "chain" knows chains only, not data.kind {self.data.kind!r}; use "equations".'
            )
        if self.data.kind not in MADE_UP and not self.data.solution_key:
            if self.refine.kind == "solution":
                yield 'refine.kind "solution" inserts the data\'s solutions; name their column in data.solution_key.'
            if self.critic.sees == "solution" and "cot" in self.critique_kinds():
                yield 'critic.sees "solution" shows the data\'s solutions; name their column in data.solution_key.'

    def _made_up(self) -> Iterator[str]:
        if self.warm_start.num_updates > 0 and self.data.kind not in MADE_UP:
            yield "warm_start has lessons on chains and snippets only; set warm_start.num_updates to 0."
        if self.warm_start.rare_rate and not self.data.num_held_out:
            yield "warm_start.rare_rate shows held-out facts, but data.num_held_out is 0; set one of them."
