"""From a configuration to what a run has besides the models: endpoints, graders, and the generator of critiques.

Every generator of every command is made by `policy_generator`, `critic_generator` or `refiner_generator`.
"""

import contextlib
import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator

from cgrpo_jax import sharding
from cgrpo_jax.critiques import texts
from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.critiques.step_check import equations
from cgrpo_jax.datasets import rollout_questions, rollouts
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import chat_protocol
from cgrpo_jax.inference.chat_client import ChatClient
from cgrpo_jax.inference.critic import Critic
from cgrpo_jax.inference.generators import Generator, Refiner, RemoteGenerator
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.records import Author, Stage
from cgrpo_jax.rewards import user_modules
from cgrpo_jax.rewards.grader import Grader
from cgrpo_jax.rewards.judge import Judge
from cgrpo_jax.rewards.rubrics.programs import Programs
from cgrpo_jax.rewards.sandbox.modules import Modules
from cgrpo_jax.runs.build_model import Frozen, Model
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.endpoint_section import Endpoint
from cgrpo_jax.runs.settings import RunSettings
from cgrpo_jax.runs.stages import Stages
from cgrpo_jax.runtime import local_copies, processes


def describe_slots(settings: RunSettings) -> str:
    """Returns what slots the policy has, and the longest text that one takes, in a line."""
    slots, groups = settings.slots, sharding.num_groups(settings.generation_mesh)
    if pages := slots.pages:
        return (
            f"{groups} x {pages.number - 1} pages of {pages.size} tokens for up to "
            f"{slots.num_slots} texts of {slots.length} tokens (prompts of {slots.longest_prompt}), "
            f"{slots.bytes / 2**20:.1f} MiB of {slots.dtype} keys and values per device"
        )
    return (
        f"{groups} x {slots.num_slots} slots of {slots.length} tokens (prompts of {slots.longest_prompt}), "
        f"{slots.bytes / 2**20:.1f} MiB of {slots.dtype} keys and values per device"
    )


# --- generators and critic ----------------------------------------------------------------------------------------


def policy_generator(
    model: Model, params: dict, *, seed: int, iteration: int, sampling: Sampling, weights_step: int = 0
) -> Generator:
    """Returns the policy as it writes.

    Args:
      model, params: the policy, and its weights as generation reads them.
      seed, iteration: enter every random key; an evaluation has a stream of its own in the place of an iteration.
      sampling: how tokens are drawn.
      weights_step: updates that the weights have seen.
    """
    return Generator(model.engine, params, model.prompts, Author.POLICY, weights_step, seed, iteration, sampling)


def critic_generator(
    policy: Generator,
    *,
    kind: str,
    model: Frozen | None,
    endpoint: ChatClient | None,
    prompts: Prompts,
    sampling: Sampling,
    weights_step: int = 0,
) -> Generator | RemoteGenerator:
    """Returns the generator of critiques: the critic that the run has, or the policy itself.

    Args:
      policy: as it writes beside it: the critic has its seed and its iteration.
      kind: of the critic: `Stages.critic`.
      model: a critic of weights of its own, and these; None for others.
      endpoint: the critic's, on process 0; None elsewhere, and for others.
      prompts: the policy's as a critic.
      sampling: how tokens are drawn.
      weights_step: updates that the critic's weights have seen, where they are trained beside the policy.
    """
    about = (policy.seed, policy.iteration, sampling)
    if kind == "endpoint":
        return RemoteGenerator(endpoint, policy.prompts, *about)
    if model:
        critic, params = model
        return Generator(critic.engine, params, critic.prompts, Author.CRITIC, weights_step, *about)
    return dataclasses.replace(policy, prompts=prompts, sampling=sampling)


def refiner_generator(policy: Generator, model: Frozen | None, *, sampling: Sampling) -> Generator | Refiner:
    """Returns who refines: the frozen refiner that the run has, or the policy itself.

    Args:
      policy: as it writes beside it: the refiner has its seed and its iteration.
      model: the frozen refiner and its weights; None without one.
      sampling: how a frozen refiner's tokens are drawn.
    """
    if model is None:
        return policy
    refiner, params = model
    about = (policy.seed, policy.iteration, sampling)
    generator = Generator(refiner.engine, params, refiner.prompts, Author.REFINER, 0, *about)
    return Refiner(generator, policy.prompts.tokenizer)


def make_critic(config: Config, generator: Generator | RemoteGenerator | None, *, kind: str, stages: Stages) -> Critic:
    """Returns who criticises responses, and by what rules.

    Args:
      config: the configuration.
      generator: the model that writes `cot` critiques.
      kind: of critique.
      stages: of the run.
    """
    check_steps: Callable = arithmetic.check_steps
    if config.critique.step_checker == "equations":
        check_steps = lambda question, response: equations.first_false_equation(response)  # noqa: E731
    return Critic(
        kind=kind,
        generator=generator,
        see_answer=config.critic.sees != "nothing",
        see_solution=config.critic.sees == "solution",
        grader=config.gate_kind,
        check_steps=check_steps,
        reveal_value=config.critique.reveals_value,
        max_retries=config.critique.max_retries,
        max_length=config.critic.max_length,
        pass_threshold=config.pass_threshold,
        corruption=config.critique.corruption if stages.corrupts else "none",
        corrupted_share=config.critique.corrupted_share,
        others=_others(config.critique.others, config.pass_threshold) if _shows_others(config, stages) else (),
        as_written=stages.critic_learns,
    )


def others_digest(config: Config, stages: Stages) -> dict[str, str]:
    """Returns the digest of the rows of `critique.others`, by what is said of them; nothing where they aren't read.

    Raises:
      UserError: there are none, or none has a critique of a wrong response that says so.
    """
    if not _shows_others(config, stages):
        return {}
    _others(config.critique.others, config.pass_threshold)
    return {"what critique.others holds": rollout_questions.digest(rollout_questions.files(config.critique.others))}


def _shows_others(config: Config, stages: Stages) -> bool:
    return stages.corrupts and config.critique.corruption == texts.ANOTHER


@functools.cache  # what a run reads stays as it was when it was read first
def _others(where: str, pass_threshold: float) -> tuple[str, ...]:
    """Returns the critiques of wrong responses that call them wrong, without the attempts that were rejected."""
    found = tuple(text for path in rollout_questions.files(where) for text in _right_of_wrong(path, pass_threshold))
    if not found:
        raise UserError(
            f"critique.others {where} has no critique of a wrong response that says so; give rows that hold some."
        )
    return found


def _right_of_wrong(path: pathlib.Path, pass_threshold: float) -> Iterator[str]:
    columns = ("row", "parent", "stage", "text", "verdict", "rejected", "reward", "ungraded")
    rows = rollouts.read_columns(path, columns).to_pylist()
    response, critique = (one.name.lower() for one in (Stage.RESPONSE, Stage.CRITIQUE))
    wrong = {
        row["row"]
        for row in rows
        if row["stage"] == response and row["reward"] is not None and row["reward"] < pass_threshold
    }
    for row in rows:
        is_shown = row["stage"] == critique and not row["rejected"]
        if is_shown and row["verdict"] is False and row["parent"] in wrong:
            yield row["text"]


# --- endpoints and graders ----------------------------------------------------------------------------------------


def open_endpoint(config: Config, settings: RunSettings, held: contextlib.ExitStack) -> ChatClient | None:
    """Returns the endpoint that writes critiques, on process 0 alone, if the run asks one.

    Args:
      config, settings: of the run.
      held: closes it.

    Raises:
      UserError: its address, its key or a limit can't be used.
    """
    with processes.agree("opening the HTTP critic"):
        if settings.stages.critic != "endpoint" or not settings.stages.asks_critic or not processes.is_first():
            return None
        return held.enter_context(_chat_client(config.critic.endpoint))


def _chat_client(endpoint: Endpoint, *, name: str = "critic") -> ChatClient:
    return ChatClient(
        endpoint.url,
        model=endpoint.model,
        key_variable=endpoint.key_variable,
        concurrency=endpoint.concurrency,
        timeout=endpoint.timeout,
        max_attempts=endpoint.max_attempts,
        max_requests=endpoint.max_requests,
        max_tokens=endpoint.max_tokens,
        dialect=chat_protocol.Dialect(
            max_tokens_field=endpoint.max_tokens_field,
            send_temperature=endpoint.send_temperature,
            extra_body=chat_protocol.extra_body(endpoint.extra_body),
        ),
        name=name,
    )


def open_grader(config: Config, held: contextlib.ExitStack, *, num_workers: int = 0) -> Grader:
    """Returns what grades responses, with its judge on process 0 alone if the configuration names one.

    Args:
      config: the configuration.
      held: closes it.
      num_workers: worker processes; 0: `grader.num_workers`.

    Raises:
      UserError: the judge's address or its key can't be used, there is no file of a user's function, or a program
        can't import one of `code.modules`.
    """
    judge, num_workers = None, num_workers or config.grader.num_workers
    with processes.agree("opening the grader"):
        paths = [local_copies.local(one) for one in config.code.modules]
        modules = user_modules.load(paths, timeout=config.grader.timeout, numpy=config.grader.numpy)
        if config.judge.endpoint.url and processes.is_first():
            judge = _open_judge(config, held, modules, num_workers=num_workers)
        return held.enter_context(
            Grader(
                config.gate_kind,
                num_workers=num_workers,
                timeout=config.grader.timeout,
                tolerance=config.grader.tolerance,
                numpy=config.grader.numpy,
                modules=modules,
                messages=config.grader.messages,
                thinking=config.grader.thinking,
                judge=judge,
            )
        )


def _open_judge(config: Config, held: contextlib.ExitStack, modules: Modules, *, num_workers: int) -> Judge:
    j = config.judge
    endpoint = held.enter_context(_chat_client(j.endpoint, name="judge"))
    programs = Programs(
        num_workers=num_workers, timeout=config.grader.timeout, numpy=config.grader.numpy, modules=modules
    )
    return Judge(
        endpoint,
        programs=held.enter_context(programs),
        mode=j.mode,
        evidence=j.evidence,
        num_judgements=j.num_judgements,
        temperature=j.temperature,
        universal=j.universal,
        max_length=j.max_length,
        max_retries=j.max_retries,
    )
