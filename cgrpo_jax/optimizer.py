"""The optimiser of a trainable model: what it is, where its state lies, and one step of it."""

import functools

import jax
import jax.numpy as jnp
import optax

from cgrpo_jax import sharding
from cgrpo_jax.records import TrainState


def make_optimizer(
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    decay_steps: int = 0,
    max_grad_norm: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.95,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the gradient's global norm.

    Args:
      learning_rate: peak rate.
      warmup_steps: updates over which it rises linearly from 0.
      decay_steps: updates after which it has fallen to 0 along a cosine; 0 keeps it constant.
      max_grad_norm: gradients of a larger global norm are scaled to it; 0 never clips.
      weight_decay, b1, b2: as in AdamW; norms and biases are not decayed.
    """
    rate = learning_rate
    if decay_steps:
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warmup_steps, decay_steps)
    elif warmup_steps:
        rate = optax.linear_schedule(0.0, learning_rate, warmup_steps)
    clip = optax.clip_by_global_norm(max_grad_norm) if max_grad_norm else optax.identity()
    # Stacked layers add an axis: a norm's scale is [L, D], a matrix has three axes or is an embedding.
    decayed = lambda params: jax.tree_util.tree_map_with_path(_is_matrix, params)  # noqa: E731
    return optax.chain(clip, optax.adamw(rate, b1=b1, b2=b2, weight_decay=weight_decay, mask=decayed))


def _is_matrix(path, x) -> bool:
    name = path[-1].key
    return not (name.endswith("norm") or name.endswith("bias"))


def state_shapes(trained: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the shapes, and shardings, of the state of weights (or adapters) that are to be trained.

    Args:
      trained: arrays, or `jax.ShapeDtypeStruct`s from `sharding.placed`.
      optimizer: what trains them; each of its statistics lies as the weight that it is of.
    """
    whole = sharding.whole_beside(jax.tree.leaves(trained)[0])
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trained)
    opt_state = optax.tree.map_params(
        optimizer,
        lambda leaf, of: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=of.sharding),
        jax.eval_shape(optimizer.init, params),
        params,
        transform_non_params=lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=whole),
    )
    return TrainState(jax.ShapeDtypeStruct((), jnp.int32, sharding=whole), params, opt_state)


def init_state(params: dict, optimizer: optax.GradientTransformation) -> TrainState:
    """Returns the state of a model that has seen no update; `params` is part of it."""
    shapes = state_shapes(params, optimizer)
    step = jnp.zeros((), jnp.int32, device=shapes.step.sharding)
    init = jax.jit(optimizer.init, out_shardings=sharding.shardings_of(shapes.opt_state))
    return TrainState(step, params, init(params))


@functools.partial(jax.jit, static_argnames=("optimizer",), donate_argnames=("state",))
def apply(state: TrainState, grads, *, optimizer):
    """Returns the state after a step along `grads`, and the norm of these."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state), optax.global_norm(grads)
