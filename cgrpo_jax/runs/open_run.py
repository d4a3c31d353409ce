"""Opens a run for a command: all that a user can get wrong is checked before the first weight is read.

All commands that run a model begin with `open_run`; its arguments are what differs between them."""

import contextlib
import dataclasses
import datetime
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.chat_client import ChatClient
from cgrpo_jax.inference.critic import Critic
from cgrpo_jax.inference.generators import Generator, Refiner, RemoteGenerator
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.models.hf import folder
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards.grader import Grader
from cgrpo_jax.runs import (
    announce,
    best_checkpoint,
    build_inference,
    build_model,
    critic_weights,
    hosts,
    load_questions,
    model_source,
    resume_policy,
    saved_config,
    start_weights,
    starts,
    validate,
)
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import rollout_writer as rollout_writer_lib
from cgrpo_jax.runs import settings as settings_lib
from cgrpo_jax.runs import trackers as trackers_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.load_questions import Questions
from cgrpo_jax.runs.rollout_writer import RolloutWriter
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runs.stages import Stages, of_finetuning
from cgrpo_jax.runtime import console, processes, profiling, watchdog
from cgrpo_jax.training.checkpoint import Checkpoints
from cgrpo_jax.training.checkpoint_steps import Step


@dataclasses.dataclass(frozen=True)
class OpenRun:
    """What a command works with.

    Attributes:
      config: as it was given; for functions of this room alone.
      settings: what was decided from it.
      run: the run's folder.
      model: the policy.
      params, weights: its weights as generation reads them, and where they come from; both empty where the command
        reads its own.
      step: which checkpoint's they are; the newest one's by default.
      frozen: the models that are asked, `critic` and `refiner`, with weights of their own; without what is trained.
      own_critic: a critic that is trained and has weights of its own.
      endpoint: that writes critiques, on process 0, if one is asked.
      questions: what is asked; empty where a person asks.
      inputs: `fingerprints.of_all` of what is read besides the configuration.
      grader: of responses and refinements.
      earlier_inputs: the hashes in `inputs` that an earlier version gave the same, where they were others.
    """

    config: Config
    settings: RunSettings
    run: RunDir
    model: build_model.Model
    params: dict
    weights: str
    frozen: Mapping[str, build_model.Frozen]
    own_critic: build_model.Model | None
    endpoint: ChatClient | None
    questions: Questions
    inputs: Mapping[str, str]
    grader: Grader
    step: Step = None
    earlier_inputs: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def policy(self, params: dict, *, iteration: int, sampling: Sampling | None = None, step: int = 0) -> Generator:
        """Returns the policy as it writes with some weights, which have seen `step` updates.

        Args:
          params: the weights, as generation reads them.
          iteration: enters every random key.
          sampling: how tokens are drawn; by default as in training.
          step: updates that the weights have seen.
        """
        return build_inference.policy_generator(
            self.model,
            params,
            seed=self.settings.seed,
            iteration=iteration,
            sampling=sampling or self.settings.sampling,
            weights_step=step,
        )

    def critic_generator(
        self,
        policy: Generator,
        *,
        sampling: Sampling | None = None,
        trained: build_model.Frozen | None = None,
        step: int = 0,
    ) -> Generator | RemoteGenerator:
        """Returns the generator of critiques beside a policy.

        Args:
          policy: as it writes.
          sampling: how tokens are drawn; by default as in training.
          trained: the critic that is trained, where it has weights of its own, which have seen `step` updates.
        """
        stages = self.settings.stages
        if stages.critic == "policy" and not stages.critique.num_texts:
            return policy  # which writes none
        return build_inference.critic_generator(
            policy,
            kind=stages.critic,
            model=trained or self.frozen.get("critic"),
            endpoint=self.endpoint,
            prompts=self.model.critic_prompts,
            sampling=sampling or self.settings.critic_sampling,
            weights_step=step,
        )

    def endpoint_counts(self) -> dict[str, Mapping]:
        """Returns what endpoints have counted, on the process that asks them, by whose they are."""
        both = {"critic": self.endpoint, "judge": self.grader.judge}
        return {whose: one.counts for whose, one in both.items() if one}

    def refiner(self, policy: Generator) -> Generator | Refiner:
        """Returns who refines beside a policy."""
        model = self.frozen.get("refiner")
        return build_inference.refiner_generator(policy, model, sampling=self.settings.refiner_sampling)

    def problem(self, question: str, answer: str | None, columns: Mapping[str, Any]) -> Problem:
        """Returns what a person asks as a problem; arguments and errors of `load_questions.by_hand`."""
        prompts, stages = self.model.prompts, self.settings.stages
        return load_questions.by_hand(self.config, stages, prompts, question, answer, columns)

    def name_of_weights(self, *, beside: pathlib.Path) -> str:
        """Names the weights, those of the run by their way from `beside`."""
        return start_weights.name_of_weights(self.config, self.run, beside=beside, step=self.step)

    def config_json(self) -> dict[str, Any]:
        """Returns the configuration as results of the run keep it."""
        return config_lib.to_json(self.config)

    def critic(self, generator: Generator | RemoteGenerator | None, *, kind: str) -> Critic:
        """Returns who criticises, by one kind of critique; a `cot` critique is written by the generator."""
        return build_inference.make_critic(self.config, generator, kind=kind, stages=self.settings.stages)


def open_run(
    config: Config,
    workdir: str,
    held: contextlib.ExitStack,
    *,
    stages: Callable[[Config], Stages],
    questions: load_questions.Choose | None,
    load_weights: bool,
    writes: Mapping[str, str | pathlib.Path],
    started: Callable[[], str | None] = lambda: None,
    trains: bool = False,
    num_slots: int | None = None,
    num_graders: int = 0,
    step: Step = None,
) -> OpenRun:
    """Checks all that a user can get wrong, and opens what a command works with. Nothing is written.

    Several processes compare what they were given and what they read; where it differs, all fail alike.

    Args:
      config: the configuration.
      workdir: the run's folder, which need not be there yet.
      held: closes what is opened.
      stages: what the command generates, of a configuration; from `stages`.
      questions: which questions it asks; from `load_questions`. None where a person asks.
      load_weights: whether it works with the run's weights, or where it has none those that a run starts from.
      writes: folders that the command writes, which all processes must share, by the flags that name them.
      started: when the command was started first, where its own folder says so; by default when the run was.
      trains: whether it trains, which needs more (`check_training`).
      num_slots: texts that a data group decodes at once; by default as in training.
      num_graders: worker processes; 0: as in training.
      step: which checkpoint's weights are loaded; the newest one's by default.

    Raises:
      UserError: something of it can't be used.
    """
    hosts.check_given(config, writes)
    mesh = _begin(config, held, trains=trains, finetunes=stages is of_finetuning)
    # Prompts may print the date, and must be the same on all processes.
    date = processes.decide(lambda: started() or RunDir(workdir).started().isoformat(), f"reading {workdir}")
    now = datetime.datetime.fromisoformat(date)
    run = RunDir(workdir, started=now)
    found = Questions([], [], {})
    with processes.agree("loading models and data"):
        if load_weights:
            saved_config.check_same_model(config, run)
        model_source.check_places(config)
        config = settings_lib.with_lengths(config, trains=trains, finetunes=stages is of_finetuning)
        settings = settings_lib.run_settings(config, mesh, stages=stages(config), num_slots=num_slots)
        if trains and settings.stages.samples:  # else how long it is follows from the rows
            check_training(settings)
        model = build_model.load_policy(config, settings, now=now)
        trained = load_weights and run.checkpoints.exists()
        announce.model(model, model_source.of_policy(config), trained=trained)
        frozen, own_critic = _load_others(config, settings, model, now=now)
        if questions:
            prompts = {"critic": (own_critic or model).critic_prompts}
            prompts |= {whose: one.prompts for whose, (one, _) in frozen.items()}
            found = _read_questions(config, settings, questions, model.prompts, **prompts)
    problems = {"training": found.training, "held-out": found.held_out}
    grader = build_inference.open_grader(config, held, num_workers=num_graders)
    checkpoints = run.checkpoints if load_weights else None
    inputs = hosts.agreed_inputs(config, settings, problems, grader.modules, checkpoints=checkpoints, step=step)
    params, weights = start_weights.trained_params(config, model, run, step=step) if load_weights else ({}, "")
    if load_weights:
        frozen |= critic_weights.trained(params, own_critic, settings.critic_learning, run, step=step)
    return OpenRun(
        config=config,
        settings=settings,
        run=run,
        model=model,
        params=params,
        weights=weights,
        frozen=frozen,
        own_critic=own_critic,
        endpoint=build_inference.open_endpoint(config, settings, held),
        questions=found,
        inputs=inputs,
        grader=grader,
        step=step,
    )


def _begin(config: Config, held: contextlib.ExitStack, *, trains: bool, finetunes: bool) -> jax.sharding.Mesh:
    """Checks the configuration by itself, sets the process up as it says, and returns the mesh of its devices."""
    with processes.agree("starting"):
        validate.check(config, trains=trains, finetunes=finetunes)
        processes.keep_programs(config.compute.keep_programs)
        limits = watchdog.limits(stall=config.compute.stall_timeout, compile=config.compute.compile_timeout)
        held.enter_context(limits)
        mesh = build_model.make_mesh(config)
        announce.machine(mesh)
    return mesh


def _load_others(
    config: Config, settings: RunSettings, model: build_model.Model, *, now: datetime.datetime
) -> tuple[dict[str, build_model.Frozen], build_model.Model | None]:
    """Loads the models that are asked beside the policy, and makes a critic that is trained, as `OpenRun` has both."""
    frozen = build_model.load_frozen(config, settings, now=now)
    own_critic = build_model.load_own_critic(config, settings, model, now=now)
    if settings.stages.critic_learns:
        announce.critic(settings, rate=config.critic.training.learning_rate)
    return frozen, own_critic


def _read_questions(
    config: Config,
    settings: RunSettings,
    choose: load_questions.Choose,
    prompts: Prompts,
    **frozen: Prompts | None,
) -> Questions:
    console.say("reading and checking the questions")
    if settings.stages.critic == "endpoint":
        frozen["critic"] = None
    found = load_questions.load_questions(config, settings.stages, prompts, choose, **frozen)
    announce.questions(found, max_prompt_length=config.max_prompt_length)
    return found


# --- training's own -----------------------------------------------------------------------------------------------


def check_training(settings: RunSettings, *, held_out_rows: bool = False) -> None:
    """Checks what training alone needs: questions, or held-out rows, that find its best checkpoint, iterations that can
    be traced, host memory for the optimiser's state.

    Raises:
      UserError: it is not so.
    """
    of_rows = settings.evaluation.keep_best.removeprefix("-") == best_checkpoint.LOSS
    if of_rows and not held_out_rows:
        raise UserError(
            f"eval.keep_best {settings.evaluation.keep_best!r} compares the losses of held-out rows, which `finetune` "
            "measures; give it some in finetune.eval_rows, or leave it empty."
        )
    if settings.evaluation.keep_best and not of_rows and not settings.evaluation_sampling:
        raise UserError(
            f"eval.keep_best {settings.evaluation.keep_best!r} compares evaluations on held-out questions; "
            "set data.eval, of made-up questions data.num_eval, or leave it empty."
        )
    profiling.check(settings.kept.profile_steps, num_iterations=settings.num_iterations)
    build_model.check_offload(settings.mesh, offload=settings.learner.offload_optimizer)


@dataclasses.dataclass(frozen=True)
class TrainingFolder:
    """The folder of a training run, which no other run may write: whether it held this run before, its checkpoints."""

    resumed: bool
    checkpoints: Checkpoints


def open_folder(opened: OpenRun, held: contextlib.ExitStack) -> TrainingFolder:
    """Makes or checks the run's folder, which `held` keeps others out of.

    Raises:
      UserError: the folder holds another run, or can't be written.
    """
    config, run = opened.config, opened.run
    resumed = processes.decide(lambda: _make_folder(opened, held), f"writing {run.path}")
    console.say(f"folder: {run.path}, {'of this run already' if resumed else 'new'}")
    checkpoints = held.enter_context(Checkpoints(run.checkpoints, max_to_keep=config.checkpoints.keep))
    return TrainingFolder(resumed, checkpoints)


def _make_folder(opened: OpenRun, held: contextlib.ExitStack) -> bool:
    config, run, model = opened.config, opened.run, opened.model
    held.enter_context(run.locked())
    schedule, falls = config.optimizer.schedule, ("num_iterations", "finetune.epochs")
    why_not = {} if schedule == "constant" else dict.fromkeys(falls, f"optimizer.schedule {schedule!r} falls over them")
    resumed = run.open(config_lib.to_json(config), ignore=resume_policy.TRAINING, why_not=why_not)
    described = {run.model: model}
    if opened.own_critic and opened.settings.stages.critic_folder:
        described[run.critic_model] = opened.own_critic
    for path, one in described.items():
        folder.write(path, one.config, one.tokenizer, source=one.source, tokenizer_source=one.tokenizer_source)
    return resumed


def rollout_writer(opened: OpenRun) -> RolloutWriter:
    """Returns what writes a run's rollouts."""
    settings = opened.settings
    return RolloutWriter(
        opened.run.rollouts,
        every=settings.kept.rollouts_every,
        grader=settings.grader,
        reward_source=settings.method.reward_source,
        spell=opened.model.tokenizer.spell,
    )


def trackers(opened: OpenRun) -> trackers_lib.Trackers:
    """Returns what shows a run's metrics elsewhere; nothing on other processes than the first.

    Raises:
      UserError: a tracker is not installed.
    """
    kept = opened.settings.kept
    config = config_lib.flatten(config_lib.to_json(opened.config))
    with processes.agree("opening the trackers"):
        made = trackers_lib.make(kept.trackers, opened.run.path, config=config, project=kept.project, group=kept.group)
    return trackers_lib.Trackers(made if processes.is_first() else {})


def note_start(opened: OpenRun) -> None:
    """Notes a start in the run's folder; says where its rollouts are, and how large a file may be."""
    settings, run = opened.settings, opened.run
    command = "train" if settings.stages.samples else "finetune"
    processes.decide(lambda: starts.write(run, starts.of_now(command, settings.mesh.devices)), f"writing {run.path}")
    if every := settings.kept.rollouts_every:
        most = rollout_writer_lib.most_bytes(settings.stages, rescore=settings.learner.rescore)
        often = "each iteration" if every == 1 else f"one in {every} iterations"
        size = f"up to about {most / 1e6:.3g} MB a file (rollouts.every {every})"
        console.say(f"rollouts of {often} in {run.rollouts}: {size}")
