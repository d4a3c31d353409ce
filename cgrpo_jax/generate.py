"""Batched generation: one jitted program prefills prompts, another decodes their continuations until all are done.

Shapes are static and few: prompts are padded to a bucket, rows to a fixed number a call, so the number of compilations
does not depend on the data. What is sampled depends on a row's `RowIndex`, never on the batch it was sampled in, nor on
the data group: each decodes its own prompts, all for as many steps as the slowest.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.sharding import PartitionSpec

from cgrpo_jax import forward, lora, sampling, sharding
from cgrpo_jax import model as model_lib
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import RowIndex


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What one row sampled: tokens (end-of-turn included), their log-probabilities, and whether it was cut off."""

    token_ids: np.ndarray
    logp: np.ndarray
    truncated: bool


@dataclasses.dataclass
class GenerationStats:
    """Totals since the last `Generator.take_stats`: tokens sampled, prompt tokens prefilled, seconds."""

    tokens: int = 0
    prompt_tokens: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `prefill` and `decode` are compiled for; `num_samples` is N, continuations a prompt."""

    config: model_lib.ModelConfig
    mesh: jax.sharding.Mesh
    eos_ids: tuple[int, ...]
    num_samples: int
    max_length: int
    temperature: float
    top_p: float
    top_k: int


@struct.dataclass
class Decoding:
    """What decoding carries from token to token, for B rows of continuations of at most T tokens.

    Attributes:
      cache: keys and values; the newest token is not in it yet.
      keys_B: PRNG key of each row, as data.
      t: int32 scalar, tokens sampled so far, the same for all rows.
      going: int32 scalar, the number of data groups with a row that is not done.
      tokens_BT, logp_BT: what was sampled.
      length_B: int32, tokens of each row, end of turn included.
      done_B: whether the row has ended.
    """

    cache: forward.Cache
    keys_B: jax.Array
    t: jax.Array
    going: jax.Array
    tokens_BT: jax.Array
    logp_BT: jax.Array
    length_B: jax.Array
    done_B: jax.Array


def reshard(
    params: dict,
    base: lora.Base | None = None,
    *,
    config: model_lib.ModelConfig,
    mesh: jax.sharding.Mesh,
    dtype: jax.typing.DTypeLike,
) -> dict:
    """Returns weights in the layout and dtype of generation: gathered over fsdp once, and not at every token.

    Args:
      params: the weights in the training layout; with `base`, its adapters, which are merged into it.
      base: the frozen model that `params` adapts.
      config, mesh: of the model.
      dtype: of the result; what is gathered has it already.
    """
    if base is None and reads_alike(params, mesh=mesh, dtype=dtype):
        return params
    return lay_out(params, base, config=config, mesh=mesh, dtype=dtype)


def reads_alike(params: dict, *, mesh: jax.sharding.Mesh, dtype: jax.typing.DTypeLike) -> bool:
    """Returns whether weights in the training layout, arrays or shapes, are what generation reads."""
    return mesh.shape[sharding.FSDP] == 1 and all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnames=("config", "mesh", "dtype"))
def lay_out(params, base, *, config, mesh, dtype):
    """The program of `reshard`."""
    weights = params if base is None else base.merge(params)
    axes = model_lib.axes_like(config, weights)
    specs = [sharding.param_specs(axes, weights, mesh, layout=x) for x in (sharding.TRAINING, sharding.GENERATION)]

    def part(weights):
        return jax.tree.map(lambda x, names: sharding.gather(x.astype(dtype), names, config.embed_dim), weights, axes)

    # Unchecked: that all devices hold the same after a gather is not in the types.
    return jax.shard_map(part, mesh=mesh, in_specs=(specs[0],), out_specs=specs[1], check_vma=False)(weights)


def _param_specs(params: dict, settings: Settings):
    axes = model_lib.axes_like(settings.config, params)
    return sharding.param_specs(axes, params, settings.mesh, layout=sharding.GENERATION)


def decoding_specs(settings: Settings) -> Decoding:
    """Returns how each array of a `Decoding` is cut."""
    heads = settings.config.num_heads
    tensor = settings.mesh.shape[sharding.TENSOR]
    head_axis = sharding.TENSOR if tensor > 1 and heads % tensor == 0 else None  # else each device has all heads
    rows, whole = sharding.BY_ROWS, sharding.WHOLE
    stored = PartitionSpec(None, sharding.DATA, head_axis)
    cache = forward.Cache(stored, stored, rows, stored, stored, whole)
    return Decoding(cache, rows, whole, whole, rows, rows, rows, rows)


@functools.partial(jax.jit, static_argnames=("settings",))
def prefill(params, tokens_QP, length_Q, live_B, seed, iteration, index_B6, *, settings: Settings) -> Decoding:
    """Runs the prompts and samples the first token of every row; rows that are not live are done from the start."""

    def part(params, tokens_QP, length_Q, live_B, seed, iteration, index_B6):
        B, T = len(index_B6), settings.max_length
        hidden_QD, cache = forward.prefill(
            params, settings.config, tokens_QP, length_Q, num_samples=settings.num_samples, max_length=T
        )
        state = Decoding(
            cache,
            jax.random.key_data(sampling.row_keys(seed, iteration, index_B6)),
            jnp.int32(0),
            jnp.int32(0),
            *sharding.varying_like((jnp.zeros((B, T), jnp.int32), jnp.zeros((B, T)), jnp.zeros(B, jnp.int32)), live_B),
            ~live_B,
        )
        return _sample(params, state, jnp.repeat(hidden_QD, settings.num_samples, axis=0), settings)

    rows, whole = sharding.BY_ROWS, sharding.WHOLE
    return jax.shard_map(
        part,
        mesh=settings.mesh,
        in_specs=(_param_specs(params, settings), rows, rows, rows, whole, whole, rows),
        out_specs=decoding_specs(settings),
    )(params, tokens_QP, length_Q, live_B, seed, iteration, index_B6)


@functools.partial(jax.jit, static_argnames=("settings",), donate_argnames=("state",))
def decode(params, state: Decoding, *, settings: Settings) -> tuple[Decoding, tuple[jax.Array, ...]]:
    """Decodes until every row has ended or is full.

    Returns:
      (the state, in its own buffers; tokens, log-probabilities, lengths and which rows have ended, on every device)
    """

    def part(params, state):
        def step(state):
            newest_B = jax.lax.dynamic_index_in_dim(state.tokens_BT, state.t - 1, axis=1, keepdims=False)
            hidden_BD, cache = forward.decode_step(params, settings.config, newest_B, state.cache)
            return _sample(params, state.replace(cache=cache), hidden_BD, settings)

        return jax.lax.while_loop(lambda s: (s.t < settings.max_length) & (s.going > 0), step, state)

    specs = decoding_specs(settings)
    in_specs = (_param_specs(params, settings), specs)
    state = jax.shard_map(part, mesh=settings.mesh, in_specs=in_specs, out_specs=specs)(params, state)
    rows = (state.tokens_BT, state.logp_BT, state.length_B, state.done_B)
    return state, sharding.replicate(rows, settings.mesh)


def _sample(params, state: Decoding, hidden_BD, settings: Settings) -> Decoding:
    """Samples the next token of every row and notes which rows it ends."""
    logits_BV = forward.logits(params, settings.config, hidden_BD)
    uniform_B = sampling.uniforms(jax.random.wrap_key_data(state.keys_B), state.t)
    token_B, logp_B = sampling.sample(
        logits_BV,
        uniform_B,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        vocab_size=settings.config.vocab_size,
    )
    done_B = state.done_B | jnp.isin(token_B, jnp.asarray(settings.eos_ids))
    return state.replace(
        t=state.t + 1,
        going=jax.lax.psum((~done_B).any().astype(jnp.int32), sharding.DATA),
        tokens_BT=jax.lax.dynamic_update_slice_in_dim(state.tokens_BT, token_B[:, None], state.t, axis=1),
        logp_BT=jax.lax.dynamic_update_slice_in_dim(state.logp_BT, logp_B[:, None], state.t, axis=1),
        length_B=state.length_B + ~state.done_B,
        done_B=done_B,
    )


def call_sizes(num_prompts: int, *, num_samples: int, max_rows: int, num_groups: int) -> list[int]:
    """Returns how many prompts, padding included, each call of `prefill` and `decode` takes.

    Args:
      num_prompts: Q.
      num_samples: N, continuations a prompt.
      max_rows: rows that a data group decodes at once; at least N.
      num_groups: data groups.

    Example:
      call_sizes(128, num_samples=7, max_rows=64, num_groups=4) == [36, 36, 36, 32]
    """
    per_group = max(1, max_rows // num_samples)
    sizes = []
    for first in range(0, num_prompts, per_group * num_groups):
        here = -(-min(num_prompts - first, per_group * num_groups) // num_groups)
        # A short last call, or a stage with few rows, takes the next power of two.
        sizes.append(num_groups * min(per_group, 1 << (here - 1).bit_length()))
    return sizes


class Generator:
    """Samples continuations of prompts with one model.

    Args:
      config: the model's shape.
      eos_ids: tokens that end a row.
      max_rows: rows that a data group decodes at once; larger requests run in several calls of this size.
      prompt_bucket: prompts are padded to a multiple of this many tokens.
      mesh: where it runs; by default one device.
    """

    def __init__(
        self,
        config: model_lib.ModelConfig,
        *,
        eos_ids: Sequence[int],
        max_rows: int,
        prompt_bucket: int = 32,
        mesh: jax.sharding.Mesh | None = None,
    ):
        self.config = config
        self.mesh = mesh or sharding.one_device()
        self.eos_ids = tuple(sorted(eos_ids))
        self.max_rows = max_rows
        self.prompt_bucket = prompt_bucket
        self.stats = GenerationStats()

    def take_stats(self) -> GenerationStats:
        """Returns the totals since the last call and starts new ones."""
        stats, self.stats = self.stats, GenerationStats()
        return stats

    def __call__(
        self,
        params: dict,
        prompts: Sequence[Sequence[int]],
        indices: Sequence[Sequence[RowIndex]],
        *,
        seed: int,
        iteration: int,
        max_length: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
    ) -> list[list[Sampled]]:
        """Samples N continuations of each of Q prompts.

        Args:
          params: the weights, on the mesh in the generation layout.
          prompts: Q prompts, lists of token ids.
          indices: Q lists of N row indices, one a continuation; they key the randomness.
          seed: the run's seed.
          iteration: the run's iteration (a new number gives new noise).
          max_length: tokens a continuation may have.
          temperature, top_p, top_k: as in `sampling.sample`.

        Returns:
          Q lists of N `Sampled`.

        Raises:
          UserError: a prompt is empty, or a prompt and its continuation do not fit the model's context.
          ValueError: there is not a list of indices for each prompt, or the lists differ in length.
        """
        if not prompts:
            return []
        started = time.monotonic()
        num_samples = len(indices[0]) if indices else 0
        if len(indices) != len(prompts) or not num_samples or any(len(group) != num_samples for group in indices):
            raise ValueError(
                f"{len(prompts)} prompts came with indices for {[len(group) for group in indices]} continuations; "
                "every prompt needs the same number, at least one."
            )
        if num_samples > self.max_rows:  # one prompt's continuations take several calls
            parts = [
                self(
                    params, prompts, [group[first : first + self.max_rows] for group in indices], seed=seed,
                    iteration=iteration, max_length=max_length, temperature=temperature, top_p=top_p, top_k=top_k,
                )
                for first in range(0, num_samples, self.max_rows)
            ]  # fmt: skip
            return [[row for part in groups for row in part] for groups in zip(*parts, strict=True)]
        longest, shortest = max(map(len, prompts)), min(map(len, prompts))
        if not shortest:
            raise UserError("a prompt is empty; a prompt needs at least one token.")
        if longest + max_length > self.config.max_context:
            raise UserError(
                f"a prompt of {longest} tokens and {max_length} new ones exceed the model's context of "
                f"{self.config.max_context}; shorten the prompts or the responses."
            )
        width = min(-(-longest // self.prompt_bucket) * self.prompt_bucket, self.config.max_context)
        groups = sharding.num_groups(self.mesh)
        out: list[list[Sampled]] = []
        for size in call_sizes(len(prompts), num_samples=num_samples, max_rows=self.max_rows, num_groups=groups):
            chunk = slice(len(out), len(out) + size)
            out += self._call(
                params,
                prompts[chunk],
                indices[chunk],
                size=size,
                width=width,
                scalars=(np.uint32(seed), np.uint32(iteration)),
                static=dict(max_length=max_length, temperature=temperature, top_p=top_p, top_k=top_k),
            )
        self.stats.tokens += sum(len(row.token_ids) for rows in out for row in rows)
        self.stats.prompt_tokens += sum(map(len, prompts))
        self.stats.seconds += time.monotonic() - started
        return out

    def _call(self, params, prompts, indices, *, size, width, scalars, static) -> list[list[Sampled]]:
        num_samples = len(indices[0])
        tokens_QP = np.zeros((size, width), np.int32)
        length_Q = np.ones(size, np.int32)
        for q, prompt in enumerate(prompts):
            tokens_QP[q, : len(prompt)] = prompt
            length_Q[q] = len(prompt)
        index_B6 = np.zeros((size * num_samples, 6), np.int32)
        num_rows = len(prompts) * num_samples
        index_B6[:num_rows] = sampling.index_array([index for group in indices for index in group])
        live_B = np.arange(size * num_samples) < num_rows
        settings = Settings(self.config, self.mesh, self.eos_ids, num_samples, **static)
        tokens_QP, length_Q, live_B, index_B6 = sharding.deal((tokens_QP, length_Q, live_B, index_B6), self.mesh)
        state = prefill(params, tokens_QP, length_Q, live_B, *scalars, index_B6, settings=settings)
        _, rows = decode(params, state, settings=settings)
        tokens_BT, logp_BT, length_B, done_B = jax.device_get(rows)
        flat = [
            Sampled(tokens_BT[b, : length_B[b]].copy(), logp_BT[b, : length_B[b]].copy(), not done_B[b])
            for b in range(num_rows)
        ]
        return [flat[i : i + num_samples] for i in range(0, num_rows, num_samples)]
