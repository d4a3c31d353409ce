"""The parts of a training run, made from its configuration before the first weight is read."""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence

from cgrpo_jax.datasets import fingerprints
from cgrpo_jax.datasets.problems import choose, load_problems
from cgrpo_jax.inference.chat_client import HttpCritic
from cgrpo_jax.models.hf import folder
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards.grader import Grader
from cgrpo_jax.runs import build_inference, build_model, resume_policy, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import console, processes, profiling, signals
from cgrpo_jax.training.checkpoint import Checkpoints


@dataclasses.dataclass(frozen=True)
class RunParts:
    """What a run is made of.

    Attributes:
      run: its open folder.
      resumed: whether the folder held it already.
      checkpoints: in that folder.
      model: the policy.
      critic_model: the frozen critic and its weights, if there is one.
      http_critic: the endpoint that writes critiques, on process 0, if there is one.
      train_problems, eval_problems: what it learns from, and what it is measured on.
      mixture: share of each source of the former; empty where all are one set.
      inputs: `fingerprints.of_all` of what it reads.
      grader: of responses and refinements.
      stopping: which of SIGTERM and SIGINT has reached a process, 0 for none; all of them ask together.
    """

    run: RunDir
    resumed: bool
    checkpoints: Checkpoints
    model: build_model.Model
    critic_model: tuple[build_model.Model, dict] | None
    http_critic: HttpCritic | None
    train_problems: Sequence[Problem]
    eval_problems: Sequence[Problem]
    mixture: Mapping[str, float]
    inputs: Mapping[str, str]
    grader: Grader
    stopping: Callable[[], int]


def open_run(config, workdir: str, held: contextlib.ExitStack) -> RunParts:
    """Checks all that a user can get wrong, and makes the parts of a run; its folder is written last.

    Args:
      config: the configuration.
      workdir: the run's folder, which is made, or held the run before.
      held: closes what is opened, and keeps other runs out of the folder.

    Raises:
      UserError: something of it can't be used, or the folder holds another run.
    """
    with processes.agree("starting"):
        validate.check(config)
        profiling.check(config.profile_steps, num_iterations=config.num_iterations)
        mesh = build_model.make_mesh(config)
        build_model.check_offload(config, mesh)
    # Prompts may print the date, and must be the same on all processes.
    started = processes.decide(lambda: RunDir(workdir).started().isoformat(), f"reading {workdir}")
    run = RunDir(workdir, started=datetime.datetime.fromisoformat(started))
    with processes.agree("loading models and data"):
        model = build_model.load_model(config, mesh, now=run.started())
        critic_model = build_model.load_critic(config, mesh, now=run.started())
        train_problems, eval_problems, skipped = load_problems(config, model.prompts)
        train_problems, mixture, chosen = choose(config, train_problems)
    problems = {"training": train_problems, "held-out": eval_problems}
    inputs = processes.decide(lambda: fingerprints.of_all(config.grader, problems), "reading reward functions")
    http_critic = build_inference.open_http_critic(config, held)
    resumed = processes.decide(lambda: _open_folder(run, config, model, held), f"writing {workdir}")
    for kind, number in skipped.items():
        if number:
            limit = f"max_prompt_length {config.max_prompt_length}"
            console.say(f"{number} {kind} questions are longer than {limit} and were left out")
    if chosen:
        console.say(chosen)
    return RunParts(
        run=run,
        resumed=resumed,
        model=model,
        critic_model=critic_model,
        http_critic=http_critic,
        train_problems=train_problems,
        eval_problems=eval_problems,
        mixture=mixture,
        inputs=inputs,
        grader=build_inference.open_grader(config, held),
        checkpoints=held.enter_context(Checkpoints(run.checkpoints, max_to_keep=config.checkpoints_to_keep)),
        stopping=held.enter_context(signals.catch_stop()),
    )


def _open_folder(run: RunDir, config, model: build_model.Model, held: contextlib.ExitStack) -> bool:
    """Makes or checks the run's folder, which `held` keeps others out of; returns whether it held a run already."""
    held.enter_context(run.locked())
    why_not = {}
    if config.schedule != "constant":
        why_not["num_iterations"] = f"schedule {config.schedule!r} falls over them"
    resumed = run.open(config_lib.to_json(config), ignore=resume_policy.TRAINING, why_not=why_not)
    folder.write(run.model, model.config, model.tokenizer, source=model.source, tokenizer_source=model.tokenizer_source)
    return resumed


def compile_engines(config, parts: RunParts, params: dict, *, clock: console.Clock) -> None:
    """Compiles all that generates before the first iteration: what the data bring compiles nothing then.

    Args:
      config, parts: of the run.
      params: the policy's weights, as generation reads them.
      clock: times it.
    """
    model, stages = parts.model, build_inference.policy_stages(config)
    described = build_inference.describe(config, model.config, stages, mesh=model.mesh, dtype=model.dtype)
    console.say(f"engine: {described}")
    with clock("compile"):
        with console.progress_reports("compiling the engine") as tell:
            model.engine.compile(params, build_inference.ways_to_sample(config), tell=tell)
        if parts.critic_model:
            critic, critic_params = parts.critic_model
            with console.progress_reports("compiling the critic's engine") as tell:
                critic.engine.compile(critic_params, [build_inference.sampling(config)], tell=tell)
