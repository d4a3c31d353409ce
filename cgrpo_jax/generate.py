"""Batched generation: one jitted program prefills prompts, decodes their continuations and stops when all are done.

Shapes are static and few: prompts are padded to a bucket, rows to a fixed number a call, so the number of compilations
does not depend on the data. What is sampled depends on a row's `RowIndex`, never on the batch it was sampled in.
"""

import dataclasses
import functools
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax import forward, sampling
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


@functools.partial(
    jax.jit, static_argnames=("config", "num_samples", "max_length", "temperature", "top_p", "top_k", "eos_ids")
)
def _generate(
    params,
    tokens_QP,
    length_Q,
    live_B,
    seed,
    iteration,
    index_B6,
    *,
    config: model_lib.ModelConfig,
    num_samples: int,
    max_length: int,
    temperature: float,
    top_p: float,
    top_k: int,
    eos_ids: tuple[int, ...],
):
    B = index_B6.shape[0]
    keys_B = sampling.row_keys(seed, iteration, index_B6)

    def draw(hidden_BD, t):
        logits_BV = forward.logits(params, config, hidden_BD)
        uniform_B = sampling.uniforms(keys_B, t)
        return sampling.sample(logits_BV, uniform_B, temperature=temperature, top_p=top_p, top_k=top_k)

    def record(state, token_B, logp_B, t):
        tokens_BT, logp_BT, length_B, done_B = state
        tokens_BT = tokens_BT.at[:, t].set(token_B)
        logp_BT = logp_BT.at[:, t].set(logp_B)
        length_B = length_B + ~done_B
        return tokens_BT, logp_BT, length_B, done_B | jnp.isin(token_B, jnp.asarray(eos_ids))

    def unfinished(carry):
        t, _, _, (_, _, _, done_B) = carry
        return (t < max_length) & ~done_B.all()

    def step(carry):
        t, token_B, cache, state = carry
        hidden_BD, cache = forward.decode_step(params, config, token_B, cache)
        token_B, logp_B = draw(hidden_BD, t)
        return t + 1, token_B, cache, record(state, token_B, logp_B, t)

    hidden_QD, cache = forward.prefill(
        params, config, tokens_QP, length_Q, num_samples=num_samples, max_length=max_length
    )
    token_B, logp_B = draw(jnp.repeat(hidden_QD, num_samples, axis=0), 0)
    empty = (jnp.zeros((B, max_length), jnp.int32), jnp.zeros((B, max_length)), jnp.zeros(B, jnp.int32), ~live_B)
    carry = (jnp.int32(1), token_B, cache, record(empty, token_B, logp_B, 0))
    tokens_BT, logp_BT, length_B, done_B = jax.lax.while_loop(unfinished, step, carry)[-1]
    return tokens_BT, logp_BT, length_B, done_B


class Generator:
    """Samples continuations of prompts with one model.

    Args:
      config: the model's shape.
      eos_ids: tokens that end a row.
      max_rows: rows decoded at once; larger requests run in several calls of this size.
      prompt_bucket: prompts are padded to a multiple of this many tokens.
    """

    def __init__(
        self, config: model_lib.ModelConfig, *, eos_ids: Sequence[int], max_rows: int, prompt_bucket: int = 32
    ):
        self.config = config
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
          params: the weights.
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
        per_call = max(1, self.max_rows // num_samples)
        out: list[list[Sampled]] = []
        for first in range(0, len(prompts), per_call):
            chunk = slice(first, first + per_call)
            out += self._call(
                params,
                prompts[chunk],
                indices[chunk],
                # A short last chunk, or a stage with few rows, takes the next power of two.
                size=min(per_call, 1 << (len(prompts[chunk]) - 1).bit_length()),
                width=width,
                scalars=(jnp.uint32(seed), jnp.uint32(iteration)),
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
        rows = len(prompts) * num_samples
        index_B6[:rows] = sampling.index_array([index for group in indices for index in group])
        live_B = np.arange(size * num_samples) < rows
        result = _generate(
            params, tokens_QP, length_Q, live_B, *scalars, index_B6,
            config=self.config, num_samples=num_samples, eos_ids=self.eos_ids, **static,
        )  # fmt: skip
        tokens_BT, logp_BT, length_B, done_B = jax.device_get(result)
        flat = [
            Sampled(tokens_BT[b, : length_B[b]].copy(), logp_BT[b, : length_B[b]].copy(), not done_B[b])
            for b in range(rows)
        ]
        return [flat[i : i + num_samples] for i in range(0, rows, num_samples)]
