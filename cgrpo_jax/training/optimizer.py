"""The optimiser of a trainable model: what it is, where its state lies, and one step of it."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding

from cgrpo_jax import sharding
from cgrpo_jax.records import TrainState
from cgrpo_jax.runtime.program import Program
from cgrpo_jax.training import muon

OPTIMIZERS = ("adamw", "adafactor", "muon")
SCHEDULES = ("constant", "linear", "cosine")
HOST = "pinned_host"  # the memory kind of a state that is offloaded
_SMALLEST_FACTORED = 32  # of the two axes that a factored statistic is of; a head has 64 or more


def make_schedule(
    kind: str, *, peak: float, warmup_steps: int = 0, num_steps: int = 0, final_share: float = 0.0
) -> optax.Schedule:
    """Returns the learning rate as a function of the number of updates before.

    With w = `warmup_steps` and p = (i - w) / (`num_steps` - w):

        i < w:     peak * i / w
        constant:  peak
        linear:    peak * (1 - (1 - final_share) * p)
        cosine:    peak * (final_share + (1 - final_share) * (1 + cos(pi p)) / 2)

    Args:
      kind: one of `SCHEDULES`.
      peak: the largest rate.
      warmup_steps: updates over which it rises from 0.
      num_steps: updates, those of the warm-up included, after which linear and cosine have fallen to
        `final_share * peak`, where they stay; constant does not look at it.
      final_share: of the peak, from 0 to 1.

    Raises:
      ValueError: an unknown kind.

    Example:
      [float(make_schedule("linear", peak=0.4, num_steps=4)(i)) for i in range(6)] == [0.4, 0.3, 0.2, 0.1, 0.0, 0.0]
    """
    falling = max(1, num_steps - warmup_steps)
    if kind == "constant":
        after = optax.constant_schedule(peak)
    elif kind == "linear":
        after = optax.linear_schedule(peak, final_share * peak, falling)
    elif kind == "cosine":
        after = optax.cosine_decay_schedule(peak, falling, alpha=final_share)
    else:
        raise ValueError(f"schedule {kind!r} is unknown; use one of {', '.join(SCHEDULES)}.")
    if not warmup_steps:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps])


def make_optimizer(
    kind: str = "adamw",
    *,
    learning_rate: float | optax.Schedule,
    max_grad_norm: float = 1.0,
    weight_decay: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.95,
    mu_dtype: str | None = None,
) -> optax.GradientTransformation:
    """AdamW, Adafactor or Muon behind a clip of the gradient's global norm; norms and biases are not decayed.

    Adafactor (arXiv 1804.04235) keeps, of the squares of a matrix's gradient, the means along its rows and along its
    columns in the place of Adam's two statistics of every weight, and no momentum. Here the learning rate is that of
    the step itself, not a share of the weights' size, and the weights decay by learning rate * weight decay, as in
    AdamW: so its own clip and scale are left out of optax's.

    Args:
      kind: one of `OPTIMIZERS`.
      learning_rate: a constant, or from `make_schedule`.
      max_grad_norm: gradients of a larger global norm are scaled to it; 0 never clips.
      weight_decay: as in AdamW.
      b1, b2: AdamW's, and those of what Muon leaves to it; Adafactor has its own decay, 1 - t^-0.8 after t updates.
      mu_dtype: of the first moments, which Adafactor has not; None keeps the weights'.

    Raises:
      ValueError: an unknown kind.
    """
    # Stacked layers add an axis: a norm's scale is [L, D], a matrix has three axes or is an embedding.
    decayed = lambda params: jax.tree_util.tree_map_with_path(_is_matrix, params)  # noqa: E731
    if kind == "adamw":
        scale = optax.scale_by_adam(b1=b1, b2=b2, mu_dtype=mu_dtype)
    elif kind == "adafactor":
        scale = _scale_by_factored_rms()
    elif kind == "muon":
        scale = muon.scale_by_muon(b1=b1, b2=b2, mu_dtype=mu_dtype)
    else:
        raise ValueError(f"optimizer {kind!r} is unknown; use one of {', '.join(OPTIMIZERS)}.")
    decay = optax.add_decayed_weights(weight_decay, mask=decayed)
    return optax.chain(_clip(max_grad_norm), scale, decay, optax.scale_by_learning_rate(learning_rate))


def _is_matrix(path, x) -> bool:
    name = path[-1].key
    return not (name.endswith("norm") or name.endswith("bias"))


def _clip(max_norm: float) -> optax.GradientTransformationExtraArgs:
    """Scales gradients of a larger global norm to `max_norm`; `apply` gives the norm, of which these may be a part."""

    def update(updates, state, params=None, *, grad_norm=None, **_):
        if not max_norm:
            return updates, state
        norm = optax.global_norm(updates) if grad_norm is None else grad_norm
        return jax.tree.map(lambda g: g * jnp.minimum(1, max_norm / norm).astype(g.dtype), updates), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


# --- factored statistics ------------------------------------------------------------------------------------------


class FactoredParts(NamedTuple):
    """The statistics of stacked layers, each with the axis of the layers in front, and those of other weights."""

    layers: optax.OptState
    others: optax.OptState


def _scale_by_factored_rms() -> optax.GradientTransformation:
    """Returns optax's scaling by factored statistics, over each layer by itself.

    Optax factors the two largest axes. Of stacked layers one might be that of the layers, whose gradients have nothing
    in common: what one layer's gradient is would change another's step. So it sees one layer at a time. A projection
    [D, H, K] is factored along D and the larger of H and K, so by heads or by their dimensions: finer than its matrix
    [D, HK] would be, and still a small part of the weight.
    """
    one = optax.scale_by_factored_rms(min_dim_size_to_factor=_SMALLEST_FACTORED)
    by_layer = optax.FactoredState._make([None, 0, 0, 0])  # all but the number of updates

    def init(params):
        layers, others = _split(params)
        each = jax.vmap(one.init, out_axes=by_layer) if layers else one.init
        return FactoredParts(each(layers), one.init(others))

    def update(updates, state, params: Any = None):
        (layers, others), (of_layers, of_others) = _split(updates), _split(params)
        each = update_others = one.update
        if layers:
            each = jax.vmap(each, in_axes=(0, by_layer, 0), out_axes=(0, by_layer))
        layers, state_of_layers = each(layers, state.layers, of_layers)
        others, state_of_others = update_others(others, state.others, of_others)
        return _join(layers, others), FactoredParts(state_of_layers, state_of_others)

    return optax.GradientTransformation(init, update)


def _split(tree: dict) -> tuple[dict, dict]:
    """Returns the stacked layers, and the rest."""
    return {k: v for k, v in tree.items() if k == "layers"}, {k: v for k, v in tree.items() if k != "layers"}


def _join(layers: Any, others: Any) -> dict:
    """Undoes `_split`."""
    return {**others, **layers}


def _kept_axes(field: str, shape: tuple[int, ...], *, stacked: bool) -> tuple[int, ...]:
    """Returns which axes of a weight a factored statistic has: optax drops the largest for rows, the next for columns.

    Args:
      field: v_row or v_col.
      shape: the weight's.
      stacked: whether its first axis is that of the layers.
    """
    order = np.argsort(shape[1:]) + 1 if stacked else np.argsort(shape)
    dropped = int(order[-1] if field == "v_row" else order[-2])
    return tuple(axis for axis in range(len(shape)) if axis != dropped)


# --- where the state lies -----------------------------------------------------------------------------------------


def state_shapes(trained: dict, optimizer: optax.GradientTransformation, *, offload: bool = False) -> TrainState:
    """Returns the shapes, and shardings, of the state of weights (or adapters) that are to be trained.

    Args:
      trained: arrays, or `jax.ShapeDtypeStruct`s from `sharding.placed`.
      optimizer: what trains them. A statistic of a weight's shape lies as the weight; a factored one is cut along the
        axes that it has, as the weight is; the numbers of updates are whole everywhere.
      offload: statistics lie in the memory of the hosts, from where `apply` fetches them.
    """
    whole = sharding.whole_beside(jax.tree.leaves(trained)[0])
    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)  # in the place of an array, as all leaves are
    params = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trained)
    weights = {_names(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}

    def place(path, leaf):
        names = _names(path)  # before those of the weight may stand that of a part of the optimiser
        of = next((weights[names[i:]] for i in range(len(names)) if names[i:] in weights), None)
        where = whole if of is None else _beside(leaf, of, path)
        if offload and of is not None:
            where = where.with_memory_kind(HOST)
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

    opt_state = jax.tree_util.tree_map_with_path(place, jax.eval_shape(optimizer.init, params))
    return TrainState(step, params, opt_state)


def _names(path) -> tuple[str, ...]:
    """Returns the keys of dicts on the way to a leaf: of a statistic those of its weight."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))


def _beside(leaf: Any, weight: Any, path) -> jax.sharding.Sharding:
    """Returns where a statistic of a weight lies."""
    if leaf.shape == weight.shape or not isinstance(weight.sharding, NamedSharding):
        return weight.sharding
    fields = {key.name for key in path if isinstance(key, jax.tree_util.GetAttrKey)} & {"v_row", "v_col"}
    if fields and leaf.ndim == weight.ndim - 1:
        kept = _kept_axes(fields.pop(), weight.shape, stacked=_names(path)[0] == "layers")
        if leaf.shape == tuple(weight.shape[axis] for axis in kept):
            spec = (*weight.sharding.spec, *[None] * weight.ndim)
            return NamedSharding(weight.sharding.mesh, sharding.spec_of([spec[axis] for axis in kept]))
    return sharding.whole_beside(weight)  # optax's place-holder where a statistic is not used


def init_state(params: dict, optimizer: optax.GradientTransformation, *, offload: bool = False) -> TrainState:
    """Returns the state of a model that has seen no update; `params` is part of it."""
    shapes = state_shapes(params, optimizer, offload=offload)
    step = jnp.zeros((), jnp.int32, device=shapes.step.sharding)
    init = jax.jit(optimizer.init, out_shardings=sharding.shardings_of(shapes.opt_state))
    return TrainState(step, params, init(params))


# --- a step -------------------------------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("rate",), donate_argnames=("average",))
def toward(average, params, *, rate: float):
    """Returns the exponential mean of weights after these: `average + rate (params - average)`."""
    return jax.tree.map(lambda mean, new: mean + rate * (new - mean), average, params)


@functools.partial(jax.jit, static_argnames=("optimizer",), donate_argnames=("state",))
def apply(state: TrainState, grads, *, optimizer):
    """Returns the state after a step along `grads`, and the norm of these.

    Where the norm is not finite the state stays exactly what it was, the number of steps included. Statistics that lie
    in host memory are fetched, and go back there.
    """
    grad_norm = optax.global_norm(grads)
    update = optax.with_extra_args_support(optimizer).update

    def step(state: TrainState) -> TrainState:
        updates, opt_state = update(grads, state.opt_state, state.params, grad_norm=grad_norm)
        params = optax.apply_updates(state.params, updates)
        return dataclasses.replace(state, step=state.step + 1, params=params, opt_state=opt_state)

    # A condition, in which each result takes its old value's place. Choosing between the two weight by weight, XLA:CPU
    # would hold a second state, and so would XLA:TPU of one that it has fetched.
    here = dataclasses.replace(state, opt_state=jax.tree.map(_to_device, state.opt_state))
    after = jax.lax.cond(jnp.isfinite(grad_norm), step, lambda state: state, here)
    opt_state = jax.tree.map(_to_where_it_was, after.opt_state, state.opt_state)
    return dataclasses.replace(after, opt_state=opt_state), grad_norm


def apply_program(optimizer: optax.GradientTransformation) -> Program:
    """Returns `apply` of an optimiser; called with (state, grads)."""
    return Program("apply", apply, (), {"optimizer": optimizer})


def _to_device(x: jax.Array) -> jax.Array:
    return jax.device_put(x, jax.memory.Space.Device) if _on_host(x) else x


def _to_where_it_was(x: jax.Array, old: jax.Array) -> jax.Array:
    return jax.device_put(x, jax.memory.Space.Host) if _on_host(old) else x


def _on_host(x: jax.Array) -> bool:
    return jax.typeof(x).memory_space == jax.memory.Space.Host
