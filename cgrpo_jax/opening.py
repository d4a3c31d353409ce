"""The parts of a training run, made from its configuration before the first weight is read."""

import contextlib
import dataclasses
import datetime
from collections.abc import Callable, Mapping, Sequence

from cgrpo_jax import (
    assemble,
    checks,
    fingerprints,
    generation,
    journal,
    may_change,
    model_files,
    profiling,
    runtime,
)
from cgrpo_jax import config as config_lib
from cgrpo_jax.checkpoint import Checkpoints
from cgrpo_jax.http_critic import HttpCritic
from cgrpo_jax.problems import choose, load_problems
from cgrpo_jax.records import Problem
from cgrpo_jax.rewards import Grader
from cgrpo_jax.rundir import RunDir


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
    model: assemble.Model
    critic_model: tuple[assemble.Model, dict] | None
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
    with runtime.agree("starting"):
        checks.check(config)
        profiling.check(config.profile_steps, num_iterations=config.num_iterations)
        mesh = assemble.make_mesh(config)
        assemble.check_offload(config, mesh)
    # Prompts may print the date, and must be the same on all processes.
    started = runtime.decide(lambda: RunDir(workdir).started().isoformat(), f"reading {workdir}")
    run = RunDir(workdir, started=datetime.datetime.fromisoformat(started))
    with runtime.agree("loading models and data"):
        model = assemble.load_model(config, mesh, now=run.started())
        critic_model = assemble.load_critic(config, mesh, now=run.started())
        train_problems, eval_problems, skipped = load_problems(config, model.prompts)
        train_problems, mixture, chosen = choose(config, train_problems)
    problems = {"training": train_problems, "held-out": eval_problems}
    inputs = runtime.decide(lambda: fingerprints.of_all(config.grader, problems), "reading reward functions")
    http_critic = generation.open_http_critic(config, held)
    resumed = runtime.decide(lambda: _open_folder(run, config, model, held), f"writing {workdir}")
    for kind, number in skipped.items():
        if number:
            limit = f"max_prompt_length {config.max_prompt_length}"
            journal.say(f"{number} {kind} questions are longer than {limit} and were left out")
    if chosen:
        journal.say(chosen)
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
        grader=generation.open_grader(config, held),
        checkpoints=held.enter_context(Checkpoints(run.checkpoints, max_to_keep=config.checkpoints_to_keep)),
        stopping=held.enter_context(runtime.catch_stop()),
    )


def _open_folder(run: RunDir, config, model: assemble.Model, held: contextlib.ExitStack) -> bool:
    """Makes or checks the run's folder, which `held` keeps others out of; returns whether it held a run already."""
    held.enter_context(run.locked())
    why_not = {}
    if config.schedule != "constant":
        why_not["num_iterations"] = f"schedule {config.schedule!r} falls over them"
    resumed = run.open(config_lib.to_json(config), ignore=may_change.TRAINING, why_not=why_not)
    model_files.write(
        run.model, model.config, model.tokenizer, source=model.source, tokenizer_source=model.tokenizer_source
    )
    return resumed


def compile_engines(config, parts: RunParts, params: dict, *, clock: journal.Clock) -> None:
    """Compiles all that generates before the first iteration: what the data bring compiles nothing then.

    Args:
      config, parts: of the run.
      params: the policy's weights, as generation reads them.
      clock: times it.
    """
    model, stages = parts.model, generation.policy_stages(config)
    described = generation.describe(config, model.config, stages, mesh=model.mesh, dtype=model.dtype)
    journal.say(f"engine: {described}")
    with clock("compile"):
        with journal.told("compiling the engine") as tell:
            model.engine.compile(params, generation.ways_to_sample(config), tell=tell)
        if parts.critic_model:
            critic, critic_params = parts.critic_model
            with journal.told("compiling the critic's engine") as tell:
                critic.engine.compile(critic_params, [generation.sampling(config)], tell=tell)
