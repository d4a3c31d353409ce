"""From a configuration to what generates: stages and their lengths, the engine and its slots, generators and critic."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from cgrpo_jax import sharding
from cgrpo_jax.critiques import schedule
from cgrpo_jax.critiques.step_check import equations
from cgrpo_jax.datasets.problems import MADE_UP
from cgrpo_jax.datasets.tasks import arithmetic
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import kv_cache, weights
from cgrpo_jax.inference.chat_client import ChatClient
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.generators import Generator, RemoteGenerator
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.models.hf.tokenizer import Tokenizer
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.records import Author
from cgrpo_jax.rewards.grader import Grader
from cgrpo_jax.rewards.judge import Judge
from cgrpo_jax.rollout import Critic
from cgrpo_jax.runtime import processes

# What a frozen critic writes.
CRITIC_STAGES = [("max_critique_prompt_length", "max_critique_length")]


# --- stages and slots ---------------------------------------------------------------------------------------------


def critique_kinds(config) -> frozenset[str]:
    """Returns the kinds of critique that a run comes to."""
    return schedule.kinds(critique=config.critique, schedule=config.critique_schedule)


def policy_stages(config) -> list[tuple[str, str]]:
    """Returns the stages that the policy writes, each as the names of its two lengths."""
    stages = [("max_prompt_length", "max_response_length")]
    if config.refine == "policy":
        stages.append(("max_refinement_prompt_length", "max_response_length"))
    critiques_wanted = config.refine == "policy" or config.critique_when == "all"
    if "cot" in critique_kinds(config) and critiques_wanted and not (config.critic_folder or config.http_critic.url):
        stages += CRITIC_STAGES
    return stages


def check_lengths(config, stages: Sequence[tuple[str, str]], whose: str, max_context: int) -> None:
    """Checks that every stage fits a model's context.

    Raises:
      UserError: one does not.
    """
    for names in stages:
        lengths = [getattr(config, name) for name in names]
        if sum(lengths) > max_context:
            raise UserError(
                f"{' + '.join(names)} is {lengths[0]} + {lengths[1]}, more than the {max_context} tokens of context "
                f"that {whose} has; lower one of them."
            )


@dataclasses.dataclass(frozen=True)
class Room:
    """The slots of an engine.

    Attributes:
      num_slots: of a data group.
      longest_prompt: tokens of the longest prompt of its stages.
      length: tokens of the longest prompt with its continuation; each slot has room for them.
      dtype: of keys and values.
      bytes: of the whole cache, on one device.
    """

    num_slots: int
    longest_prompt: int
    length: int
    dtype: str
    bytes: int


def room(config, shape: ModelConfig, stages: Sequence[tuple[str, str]], *, mesh, dtype: str) -> Room:
    """Returns the slots that a configuration asks for: `num_slots`, or as many as `kv_cache_gib` a device holds.

    An iteration's texts are the most that the latter gives.

    Args:
      config: the configuration.
      shape: the model's.
      stages: that the engine writes, from `policy_stages` or `CRITIC_STAGES`.
      mesh: where it writes.
      dtype: that the model computes in.

    Raises:
      UserError: the memory does not hold one slot.
    """
    lengths = [(getattr(config, prompt), getattr(config, continuation)) for prompt, continuation in stages]
    longest, length = max(prompt for prompt, _ in lengths), max(map(sum, lengths))
    dtype = config.cache_dtype or str(dtype)
    tensor, split = mesh.shape[sharding.TENSOR], weights.splits(mesh)
    cut = tensor if shape.num_heads % tensor == 0 else 1
    one = jax.eval_shape(
        lambda: kv_cache.empty_cache(shape, slots=1, length=length, tensor=cut, dtype=jnp.dtype(dtype), split=split)
    )
    size = sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(one)) // cut
    # More than the texts that an iteration can have at a time would stay empty.
    texts = config.questions_per_iteration * config.num_responses
    texts *= max(1, config.num_critiques * config.refinements_per_critique)
    most = -(-texts // sharding.num_groups(mesh))
    number = config.num_slots or min(most, int(config.kv_cache_gib * 2**30 // size))
    if number < 1:
        raise UserError(
            f"kv_cache_gib {config.kv_cache_gib:g} does not hold one slot of {length} tokens, which takes "
            f"{size / 2**30:.3g} GiB a device; raise it, lower the lengths, or set num_slots."
        )
    return Room(number, longest, length, dtype, number * size)


def make_engine(
    config, shape: ModelConfig, stages: Sequence[tuple[str, str]], tokenizer: Tokenizer, *, mesh, dtype: str
) -> Engine:
    """Returns the engine that writes some stages."""
    has = room(config, shape, stages, mesh=mesh, dtype=dtype)
    return Engine(
        shape,
        eos_ids=tokenizer.eos_ids,
        num_slots=has.num_slots,
        length=has.length,
        longest_prompt=has.longest_prompt,
        prompt_bucket=config.prompt_bucket,
        chunk=config.decode_chunk,
        cache_dtype=config.cache_dtype,
        stop=tuple(config.stop),
        decode=tokenizer.decode,
        mesh=mesh,
    )


def describe(config, shape: ModelConfig, stages: Sequence[tuple[str, str]], *, mesh, dtype: str) -> str:
    """Returns what slots there are, and the longest text that one takes, in a line."""
    has = room(config, shape, stages, mesh=mesh, dtype=dtype)
    groups = sharding.num_groups(mesh)
    return (
        f"{groups} x {has.num_slots} slots of {has.length} tokens (prompts of {has.longest_prompt}), "
        f"{has.bytes / 2**20:.1f} MiB of {has.dtype} keys and values a device"
    )


# --- generators and critic ------------------------------------------------------------------------------------------


def make_generator(config, model, params, *, author: Author, weights_step: int, iteration: int) -> Generator:
    """Returns a model that writes with the run's sampling settings."""
    return Generator(
        engine=model.engine,
        params=params,
        prompts=model.prompts,
        author=author,
        weights_step=weights_step,
        seed=config.seed,
        iteration=iteration,
        sampling=sampling(config),
    )


def sampling(config) -> Sampling:
    """Returns how the stages of an iteration draw tokens."""
    return Sampling(config.temperature, config.top_p, config.top_k)


def ways_to_sample(config) -> list[Sampling]:
    """Returns how the policy's tokens are drawn: in iterations first, then in evaluations, if there are any."""
    e = config.eval
    if not (config.data.eval or config.data.kind in MADE_UP and config.data.num_eval):
        return [sampling(config)]
    return [sampling(config), Sampling(0.0)] + ([Sampling(e.temperature, e.top_p)] if max(e.k) > 1 else [])


def open_http_critic(config, held: contextlib.ExitStack) -> ChatClient | None:
    """Returns the endpoint that writes critiques, on process 0 alone, if the configuration names one.

    Args:
      config: the configuration.
      held: closes it.

    Raises:
      UserError: its address, its key or a limit can't be used.
    """
    h = config.http_critic
    with processes.agree("opening the HTTP critic"):
        if not (h.url and processes.is_first()):
            return None
        return held.enter_context(
            ChatClient(
                h.url,
                model=h.model,
                key_variable=h.key_variable,
                concurrency=h.concurrency,
                timeout=h.timeout,
                max_attempts=h.max_attempts,
                max_requests=h.max_requests,
                max_tokens=h.max_tokens,
            )
        )


def open_grader(config, held: contextlib.ExitStack, *, num_workers: int = 0) -> Grader:
    """Returns what grades responses, with its judge on process 0 alone if the configuration names one.

    Args:
      config: the configuration.
      held: closes it.
      num_workers: worker processes; 0: `grader_workers`.

    Raises:
      UserError: the judge's address or its key can't be used, or there is no file of a user's function.
    """
    j, judge = config.judge, None
    with processes.agree("opening the grader"):
        if j.url and processes.is_first():
            endpoint = ChatClient(
                j.url,
                model=j.model,
                key_variable=j.key_variable,
                concurrency=j.concurrency,
                timeout=j.timeout,
                max_attempts=j.max_attempts,
                name="judge",
            )
            judge = Judge(held.enter_context(endpoint), max_length=j.max_reply_length, max_retries=j.max_retries)
        return held.enter_context(
            Grader(
                config.grader,
                num_workers=num_workers or config.grader_workers,
                timeout=config.grader_timeout,
                tolerance=config.grader_tolerance,
                messages=config.grader_messages,
                judge=judge,
            )
        )


def make_remote_generator(config, model, critic: ChatClient | None, *, iteration: int) -> RemoteGenerator:
    """Returns who asks the endpoint for critiques."""
    return RemoteGenerator(critic, model.prompts, config.seed, iteration, sampling(config))


def make_critic(config, generator: Generator | RemoteGenerator | None, *, kind: str) -> Critic:
    """Returns how responses are critiqued.

    Args:
      config: the configuration.
      generator: the model that writes `cot` critiques.
      kind: of critique.
    """
    check_steps: Callable = arithmetic.check_steps
    if config.step_checker == "equations":
        check_steps = lambda question, response: equations.first_false_equation(response)  # noqa: E731
    return Critic(
        kind=kind,
        generator=generator,
        see_answer=config.critic_sees_answer,
        grader=config.grader,
        check_steps=check_steps,
        reveal_value=config.execution_reveals_value,
        max_retries=config.max_retries,
        max_length=config.max_critique_length,
        pass_threshold=config.pass_threshold,
    )
