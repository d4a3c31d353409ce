"""Log-probabilities of packed rows: the forward pass that an update learns through, and scores that it needs before.

Scores are the trainer's own log-probabilities (`objective.old_logp="trainer"`) and those of the reference policy (KL
term).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.models import lora, transformer
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.logprobs import linear_logprobs
from cgrpo_jax.records import Array, TrainBatch, TrainRow
from cgrpo_jax.runtime import watchdog
from cgrpo_jax.runtime.program import Program
from cgrpo_jax.training.packing import PackShape, batch_shapes, pack_onto


@dataclasses.dataclass(frozen=True)
class Kernels:
    """How attention and the output layer are computed; see `attention.packed_attention` and `linear_logprobs`."""

    attention: str
    output: str

    @classmethod
    def of(cls, mesh: jax.sharding.Mesh) -> "Kernels":
        """Returns the kernels for the devices of a mesh: those made for TPUs there, JAX's own operations elsewhere."""
        device = mesh.devices.flat[0]
        if device.platform != "tpu":
            return PLAIN
        # The tiles of the output layer need more on-chip memory than the 16 MiB of chips up to v4.
        return cls("splash", "blocks" if device.device_kind in ("TPU v2", "TPU v3", "TPU v4") else "pallas")


PLAIN = Kernels("blocks", "blocks")
_ROW_BLOCK = 1024  # targets at most that plain JAX takes at a time


def forward_weights(params: dict, base: lora.Base | None) -> dict:
    """Returns what the forward pass reads; `params` is what is trained: all weights, or the adapters of `base`."""
    return params if base is None else base.attach(params)


def weight_specs(params: dict, config: params_lib.ModelConfig, mesh: jax.sharding.Mesh, layout=sharding.TRAINING):
    """Returns how weights or adapters are cut."""
    return sharding.param_specs(params_lib.axes_like(config, params), params, mesh, layout=layout)


def base_specs(
    base: lora.Base | None, config: params_lib.ModelConfig, mesh: jax.sharding.Mesh, layout=sharding.TRAINING
):
    """Returns how the frozen model that adapters belong to is cut; None without one."""
    if base is None:
        return None
    return dataclasses.replace(base, params=weight_specs(base.params, config, mesh, layout))


class Targets(NamedTuple):
    """The targets of a packed batch, one after the other: N at most, row b's begin where those of the rows before end.

    Attributes:
      n_BT: which of the N a target is; out of range past a row's length.
      position_N: packed position, counted over all token rows, that predicts it; out of range where there is none.
      id_N: the target.
      num_live: how many there are.
    """

    n_BT: jax.Array
    position_N: jax.Array
    id_N: jax.Array
    num_live: jax.Array

    def by_row(self, x_N: jax.Array) -> jax.Array:
        """Returns `[B, T]` of what was computed of each target; 0 past a row's length."""
        return x_N.at[self.n_BT].get(mode="fill", fill_value=0)

    def at_positions(self, x_RS: Array | None) -> jax.Array:
        """Returns `[N, ...]` of what a batch has at each packed position, `[R, S, ...]`; 0 where there is no target."""
        assert x_RS is not None, "the shape of the batch has it"
        return jnp.asarray(x_RS).reshape(-1, *x_RS.shape[2:]).at[self.position_N].get(mode="fill", fill_value=0)


def target_states(
    params,
    config: params_lib.ModelConfig,
    batch: TrainBatch,
    *,
    remat: str,
    dtype: jax.typing.DTypeLike | None = None,
    kernels: Kernels = PLAIN,
) -> tuple[jax.Array, Targets]:
    """Returns `[N, D]` hidden states that predict the targets of a packed batch, and what these are.

    Only these positions go through the unembedding.
    """
    hidden_RSD = transformer.hidden_states(
        params,
        config,
        batch.tokens_RS,
        batch.positions_RS,
        batch.segments_RS,
        prompts_BS=batch.prompts_RS,
        remat=remat,
        kernel=kernels.attention,
        dtype=dtype,
    )
    R, S, _ = hidden_RSD.shape
    T = batch.target_BT.shape[1]
    live_BT = jnp.arange(T) < batch.length_B[:, None]
    N, nowhere = min(R * S, live_BT.size), R * S  # nowhere is out of range: neither read nor written
    end_B = jnp.cumsum(batch.length_B)
    n_BT = jnp.where(live_BT, (end_B - batch.length_B)[:, None] + jnp.arange(T), nowhere)
    position_BT = batch.row_B[:, None] * S + batch.start_B[:, None] + jnp.arange(T)
    position_N = jnp.full(N, nowhere).at[n_BT].set(position_BT, mode="drop")
    id_N = jnp.zeros(N, jnp.int32).at[n_BT].set(batch.target_BT, mode="drop")
    targets = Targets(n_BT, position_N, id_N, end_B[-1])
    return targets.at_positions(hidden_RSD), targets


def target_logprobs(
    params,
    config: params_lib.ModelConfig,
    hidden_ND: jax.Array,
    targets: Targets,
    *,
    temperature: float,
    dtype: jax.typing.DTypeLike | None = None,
    kernels: Kernels = PLAIN,
    num_parts: int = 1,
) -> tuple[jax.Array, jax.Array]:
    """Returns `[B, T]` log-probabilities (nats) of the targets of a packed batch, and the entropies where they are.

    Both are of `softmax(logits / temperature)`; entries past a row's length are 0. Arguments are from `target_states`.
    In plain JAX the N places of targets are taken in `num_parts` parts at least, and parts without a target are left
    out.
    """
    N = hidden_ND.shape[0]
    parts = {"row_block": min(_ROW_BLOCK, -(-N // num_parts))} if kernels.output == "blocks" else {}
    logp_N, entropy_N = linear_logprobs(
        hidden_ND,
        transformer.unembedding(params, config, dtype),
        targets.id_N,
        temperature=temperature,
        softcap=config.logit_softcap,
        vocab_size=config.vocab_size,
        num_live=targets.num_live,
        kernel=kernels.output,
        **parts,
    )
    return targets.by_row(logp_N), targets.by_row(entropy_N)


def row_logprobs(
    params,
    config: params_lib.ModelConfig,
    batch: TrainBatch,
    *,
    temperature: float,
    remat: str,
    dtype: jax.typing.DTypeLike | None = None,
    kernels: Kernels = PLAIN,
) -> tuple[jax.Array, jax.Array]:
    """Returns `target_logprobs` of a packed batch."""
    hidden_ND, targets = target_states(params, config, batch, remat=remat, dtype=dtype, kernels=kernels)
    return target_logprobs(params, config, hidden_ND, targets, temperature=temperature, dtype=dtype, kernels=kernels)


@functools.partial(jax.jit, static_argnames=("config", "temperature", "dtype", "mesh", "layout"))
def score(
    params,
    base: lora.Base | None,
    batch: TrainBatch,
    *,
    config: params_lib.ModelConfig,
    temperature,
    dtype,
    mesh,
    layout,
):
    """Returns the `[B, T]` log-probabilities of one packed batch's targets, on every device."""

    def part(params, base, batch):
        logp_BT, _ = row_logprobs(
            forward_weights(params, base),
            config,
            batch,
            temperature=temperature,
            remat="none",
            dtype=dtype,
            kernels=Kernels.of(mesh),
        )
        return logp_BT

    in_specs = (weight_specs(params, config, mesh, layout), base_specs(base, config, mesh, layout), sharding.BY_ROWS)
    scored = jax.shard_map(part, mesh=mesh, in_specs=in_specs, out_specs=sharding.BY_ROWS)
    return sharding.replicate(scored(params, base, batch), mesh)


def score_program(
    shape: PackShape,
    *,
    max_length: int,
    config: params_lib.ModelConfig,
    temperature: float,
    dtype: jax.typing.DTypeLike | None,
    mesh: jax.sharding.Mesh,
    layout: Sequence[str],
) -> Program:
    """Returns `score` of packed batches; called with (params, base, batch). Arguments as for `score_rows`."""
    keywords = {"config": config, "temperature": temperature, "dtype": dtype, "mesh": mesh, "layout": tuple(layout)}
    return Program("score", score, (batch_shapes(shape, max_length=max_length, mesh=mesh),), keywords)


def score_rows(
    params: dict,
    rows: Sequence[TrainRow],
    *,
    config: params_lib.ModelConfig,
    shape: PackShape,
    max_length: int,
    temperature: float = 1.0,
    dtype: jax.typing.DTypeLike | None = None,
    base: lora.Base | None = None,
    mesh: jax.sharding.Mesh | None = None,
    layout: Sequence[str] = sharding.TRAINING,
) -> list[np.ndarray]:
    """Returns the log-probabilities (nats) of each row's targets given its context, in the order of `rows`.

    `params` are the weights or, with `base`, its adapters; they, and these, lie on `mesh` in `layout`. Used for the
    reference policy, and for `objective.old_logp="trainer"`.
    """
    mesh = mesh or sharding.one_device()
    program = score_program(
        shape, max_length=max_length, config=config, temperature=temperature, dtype=dtype, mesh=mesh, layout=layout
    )
    # Each row carries its own number in the field that packing copies through, so that it is found again.
    numbered = [dataclasses.replace(row, advantage=float(i + 1)) for i, row in enumerate(rows)]
    out: list = [None] * len(rows)
    for batch in pack_onto(mesh, numbered, shape, max_length=max_length):
        logp_BT = np.asarray(program(params, base, sharding.deal(batch, mesh)))
        watchdog.tick()
        for b in np.flatnonzero(batch.length_B):
            out[int(batch.advantage_B[b]) - 1] = logp_BT[b, : batch.length_B[b]]
    return out
