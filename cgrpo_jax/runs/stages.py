"""What a run generates: its stages, their lengths and numbers, and who generates each. Decided here, once.

stages = of_training(config)
stages.by("policy")          # what the policy's engine has room for
stages.kind_at(iteration)    # which critique an iteration asks for
"""

import dataclasses

from cgrpo_jax.critiques import schedule
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Stage
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config


@dataclasses.dataclass(frozen=True)
class StageSpec:
    """One stage that a model generates.

    Attributes:
      stage: which.
      by: who generates it: the `policy`, a critic of weights of its own (`folder`), a frozen `refiner`, or a model
        behind an HTTP `endpoint`.
      prompt_key, length_key: keys of its two lengths, for messages.
      max_prompt_length, max_length: tokens that a prompt, and what follows it, may have.
      num_prompts, num_texts: that an iteration has at most, every question failed and no critique written twice;
        0 where the run has no such stage.
    """

    stage: Stage
    by: str
    prompt_key: str
    length_key: str
    max_prompt_length: int
    max_length: int
    num_prompts: int
    num_texts: int

    @property
    def num_tokens(self) -> int:
        """Tokens that an iteration samples in it at most."""
        return self.num_texts * self.max_length


@dataclasses.dataclass(frozen=True)
class Stages:
    """The stages of a run, or of a command that shares its models.

    Attributes:
      response, refinement: what the policy generates, or of the latter a frozen refiner.
      critique: what a critic that is a model generates.
      critic: who that is: the `policy` itself, an `adapter` on it that is trained, a model on its devices (`folder`),
        or an HTTP `endpoint`.
      critic_folder: of such a model; empty for another.
      asks_critic: whether critiques are asked for at all; without that no critic is loaded or opened.
      asks_refiner: likewise of refinements and a frozen refiner.
      corrupts: whether what refinements or a teacher see of a critique may be made wrong (`critique.corruption`).
      critic_learns: whether the critic is trained beside the policy (`critic.train`), which training alone does.
      teaches: whether a teacher may score responses after their feedback (`distil`), which training alone has.
      first_kind, kind_schedule: which kind of critique each iteration asks for, as for `schedule.kind_at`.
      critique_when: whether only responses that are refined are critiqued (`refining`), or all.
      refine: who refines: the `policy`; `solution` inserts the data's own, `none` is plain GRPO.
      refiner_folder: of a frozen refiner, which refines in the policy's place; empty for none.
      rows: folder or file of rollouts whose questions are asked, and whose responses are taken; empty: the data's.
      samples: whether an iteration generates at all; one that learns from rows does not.
      judges: whether some questions ask whether a response is right (`verdict_share`), which training alone has.
    """

    response: StageSpec
    refinement: StageSpec
    critique: StageSpec
    critic: str
    critic_folder: str
    first_kind: str
    kind_schedule: schedule.Schedule
    critique_when: str
    refine: str
    refiner_folder: str = ""
    asks_critic: bool = True
    asks_refiner: bool = True
    corrupts: bool = False
    critic_learns: bool = False
    teaches: bool = False
    rows: str = ""
    samples: bool = True
    judges: bool = False

    @property
    def all(self) -> tuple[StageSpec, ...]:
        """The stages that the run has."""
        return tuple(one for one in (self.response, self.refinement, self.critique) if one.num_texts)

    def by(self, who: str) -> tuple[StageSpec, ...]:
        """Returns what one model generates. A frozen critic that only stands by has room for critiques all the same."""
        if who == "folder":
            return (self.critique,)
        return tuple(one for one in self.all if one.by == who)

    @property
    def kinds(self) -> frozenset[str]:
        """All kinds of critique that come."""
        return schedule.kinds(critique=self.first_kind, schedule=self.kind_schedule)

    def kind_at(self, iteration: int) -> str:
        """Returns the kind of critique of an iteration."""
        return schedule.kind_at(iteration, critique=self.first_kind, schedule=self.kind_schedule)


_ASKS_NOBODY = {"asks_critic": False, "asks_refiner": False, "corrupts": False, "critic_learns": False}
_ASKS_NOBODY |= {"teaches": False, "judges": False}


def of_training(config: Config) -> Stages:
    """Returns the stages of a training run."""
    kind, refine = config.critique.kind, config.refine.kind
    folder = _refiner_folder(config, refine)
    corrupts = refine == "policy" or config.distil.kind != "none"
    found = _stages(config, kind, config.critique.schedule, refine, _critic(config), refiner_folder=folder)
    found = dataclasses.replace(found, judges=config.num_verdicts > 0, corrupts=corrupts, teaches=True)
    return dataclasses.replace(found, critic_learns=config.critic.train)


def of_finetuning(config: Config) -> Stages:
    """Returns the stages of `finetune`: responses to held-out questions, and none in an iteration."""
    found = of_training(config)
    refinement, critique = (
        dataclasses.replace(one, num_prompts=0, num_texts=0) for one in (found.refinement, found.critique)
    )
    none = {"critic": "policy", "critic_folder": "", "refine": "none", "refiner_folder": ""}
    none |= {"refinement": refinement, "critique": critique} | _ASKS_NOBODY
    return dataclasses.replace(found, samples=False, **none)


def of_evaluation(config: Config) -> Stages:
    """Returns the stages that an evaluation has room for, which are those of training; it asks no critic."""
    return dataclasses.replace(of_training(config), **_ASKS_NOBODY)


def of_test_time_refinement(config: Config) -> Stages:
    """Returns the stages of `evaluate --refine`: a critic that writes, and a policy that refines.

    Raises:
      UserError: this run has no critiques, or they are of the reward or the answer, which no test has.
    """
    if config.critique.kind != "cot":
        knows = {"none": "says nothing", "hint": "is of the answer, which no test has"}
        why = knows.get(config.critique.kind, "is made by a rule that knows the reward")
        raise UserError(
            f"--refine asks a critic that judges responses, but critique {config.critique.kind!r} {why}; set "
            "--config.critique.kind=cot, and a critic if it is not the policy itself."
        )
    return _stages(config, "cot", (), "policy", _critic(config))


def of_diagnosis(config: Config) -> Stages:
    """Returns the stages of `diagnose`: critiques, and refinements. Where rules write all, the policy is the critic."""
    kinds = config.diagnosis.kinds
    if "cot" in kinds:
        return _stages(config, "cot", (), "policy", _critic(config))
    return _stages(config, next((one for one in kinds if one != "none"), "none"), (), "policy", "policy")


def of_collection(config: Config) -> Stages:
    """Returns the stages of `collect`: critiques are of the kind that a run of a curriculum ends with.

    Raises:
      UserError: several critiques of a response would be the same text, or those of `collect.rows` are not shown.
    """
    c = config.collect
    kind = of_training(config).kind_at(config.num_iterations)
    if c.num_critiques > 1 and kind not in schedule.WRITTEN:
        raise UserError(
            f"collect.num_critiques {c.num_critiques} of critique.kind {kind!r} would be the same text each time; use "
            "1, or --config.critique.kind=cot."
        )
    if not c.num_critiques and c.num_refinements and kind in ("none", "hint"):
        raise UserError(
            f"collect.num_critiques 0 refines after the critiques of collect.rows, but critique.kind {kind!r} shows no "
            "critique; use --config.critique.kind=cot."
        )
    numbers = {
        "num_responses": c.num_responses or config.num_responses,
        "critique.num_per_response": max(c.num_critiques, 1),
        "refine.per_critique": max(c.num_refinements, 1),
        "critique.when": "all",
    }
    asks = c.num_critiques > 0 and kind in schedule.WRITTEN
    refine, critic = "policy" if c.num_refinements else "none", _critic(config) if asks else "policy"
    refiner = _refiner_folder(config, refine)
    found = _stages(config_lib.replaced(config, numbers), kind, (), refine, critic, refiner_folder=refiner)
    if not asks:
        silent = dataclasses.replace(found.critique, num_prompts=0, num_texts=0)
        found = dataclasses.replace(found, critique=silent, asks_critic=False)
    return dataclasses.replace(found, rows=c.rows)


def of_sample(config: Config) -> Stages:
    """Returns the stages of `sample`: critiques are of the kind that a run of a curriculum ends with."""
    last = of_training(config).kind_at(config.num_iterations)
    found = _stages(config, last, (), config.refine.kind, _critic(config))
    return dataclasses.replace(found, corrupts=found.refine == "policy")


def check_lengths(specs: tuple[StageSpec, ...], whose: str, max_context: int) -> None:
    """Checks that every stage fits a model's context.

    Raises:
      UserError: one does not.
    """
    for one in specs:
        if one.max_prompt_length + one.max_length > max_context:
            raise UserError(
                f"{one.prompt_key} + {one.length_key} is {one.max_prompt_length} + {one.max_length}, more than the "
                f"{max_context} tokens of context that {whose} has; lower one of them."
            )


def _critic(config: Config) -> str:
    """Returns who criticises: the critic that is named, or an adapter on the policy that is trained in its place."""
    adapts = config.critic.train and config.critic.training.weights == "adapter"
    return "adapter" if adapts else config.critic.kind


def _refiner_folder(config: Config, refine: str) -> str:
    """Returns the folder of the frozen model that refines, if any."""
    return config.refiner.folder if refine == "policy" else ""


def _stages(
    config: Config,
    kind: str,
    kind_schedule: schedule.Schedule,
    refine: str,
    critic: str,
    *,
    refiner_folder: str = "",
) -> Stages:
    questions = config.questions_per_iteration + config.max_extra_questions
    responses = questions * config.num_responses
    refines = refine == "policy"
    critiqued = responses * config.critique.num_per_response if refines or config.critique.when == "all" else 0
    refined = critiqued if refines else 0  # critiques, or their places where a rule writes them
    refinements = refined * config.refine.per_critique
    critiques = 0
    if schedule.WRITTEN & schedule.kinds(critique=kind, schedule=kind_schedule):
        critiques = critiqued
        if config.reward_source == "critic":  # which reads refinements too
            critiques += refinements * config.critique.num_per_response
    return Stages(
        response=StageSpec(
            Stage.RESPONSE,
            "policy",
            "max_prompt_length",
            "max_response_length",
            config.max_prompt_length,
            config.max_response_length,
            num_prompts=questions,
            num_texts=responses,
        ),
        refinement=StageSpec(
            Stage.REFINEMENT,
            "refiner" if refiner_folder else "policy",
            "refine.max_prompt_length",
            "max_response_length",
            config.refine.max_prompt_length,
            config.max_response_length,
            num_prompts=refined,
            num_texts=refinements,
        ),
        critique=StageSpec(
            Stage.CRITIQUE,
            "folder" if critic == "adapter" else critic,
            "critic.max_prompt_length",
            "critic.max_length",
            config.critic.max_prompt_length,
            config.critic.max_length,
            num_prompts=critiques,
            num_texts=critiques,
        ),
        critic=critic,
        critic_folder=config.critic.folder if critic == "folder" else "",
        first_kind=kind,
        kind_schedule=tuple(kind_schedule),
        critique_when=config.critique.when,
        refine=refine,
        refiner_folder=refiner_folder,
    )
