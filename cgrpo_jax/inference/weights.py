"""Two layouts of one set of weights: training cuts them over fsdp and tensor, generation over tensor alone.

Generation reads all weights at every token, so they are gathered once an iteration, in the dtype that it computes in,
and dropped after. Its tensor groups may be several of training's (`sharding.generation_mesh`): the same program deals
the weights out to them. On a CPU they are also taken apart by layer (kv_cache.py says why).
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from cgrpo_jax import sharding
from cgrpo_jax.inference import kv_cache, tensor_groups
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.runtime.program import Program


def splits(mesh: jax.sharding.Mesh) -> bool:
    """Returns whether generation on this mesh has its weights apart by layer."""
    return mesh.devices.flat[0].platform == "cpu"


def to_generation(
    params: dict,
    base: lora.Base | None = None,
    *,
    config: params_lib.ModelConfig,
    mesh: jax.sharding.Mesh,
    target: jax.sharding.Mesh | None = None,
    dtype: jax.typing.DTypeLike,
    split: bool,
) -> dict:
    """Returns weights as generation reads them.

    Args:
      params: the weights in the training layout; with `base`, its adapters, which are merged into it.
      base: the frozen model that `params` adapts.
      config, mesh: of the model.
      target: the mesh of the result, from `sharding.generation_mesh`; by default that of the model.
      dtype: of the result; what is gathered has it already.
      split: take them apart by layer. What scores reads them stacked.
    """
    if reads_alike(params, base, mesh=mesh, dtype=dtype, split=split):
        return params
    program = generation_program(config=config, mesh=mesh, target=target or mesh, dtype=dtype, split=split)
    return program(params, base)


def generation_program(
    *, config: params_lib.ModelConfig, mesh: jax.sharding.Mesh, target: jax.sharding.Mesh,
    dtype: jax.typing.DTypeLike, split: bool,
) -> Program:  # fmt: skip
    """Returns `lay_out`; called with (params, base), as `to_generation` is where these are not `reads_alike`."""
    keywords = {"config": config, "mesh": mesh, "target": target, "dtype": dtype, "split": split}
    return Program("reshard", lay_out, (), keywords)


def generation_shapes(
    shapes: dict,
    *,
    config: params_lib.ModelConfig,
    mesh: jax.sharding.Mesh,
    dtype: jax.typing.DTypeLike,
    split: bool,
) -> dict:
    """Returns what `to_generation` makes of stacked weights of these shapes, as `jax.ShapeDtypeStruct`s."""
    specs = generation_specs(shapes, config=config, mesh=mesh, split=split)
    shapes = jax.eval_shape(kv_cache.split_layers, shapes) if split else shapes
    return jax.tree.map(
        lambda leaf, spec: jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=NamedSharding(mesh, spec)),
        shapes,
        specs,
    )


def reads_alike(
    params: dict, base: lora.Base | None, *, mesh: jax.sharding.Mesh, dtype: jax.typing.DTypeLike, split: bool
) -> bool:
    """Returns whether weights in the training layout, arrays or shapes, are what generation reads."""
    whole = mesh.shape[sharding.FSDP] == 1
    return base is None and whole and not split and all(leaf.dtype == dtype for leaf in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnames=("config", "mesh", "target", "dtype", "split"))
def lay_out(params, base, *, config: params_lib.ModelConfig, mesh, target, dtype, split):
    """The program of `to_generation`."""
    weights = params if base is None else base.merge(params)
    axes = params_lib.axes_like(config, weights)
    specs = sharding.param_specs(axes, weights, mesh, layout=sharding.TRAINING)
    whole_specs, out_specs = (
        generation_specs(weights, config=config, mesh=target, split=one) for one in (False, split)
    )
    groups = tensor_groups.Groups(mesh, target)

    def part(weights):
        def gathered(x, names, before, after):
            return groups.dealt(x.astype(dtype), names, before, after, embed_dim=config.embed_dim)

        whole = jax.tree.map(gathered, weights, axes, specs, whole_specs)
        return kv_cache.split_layers(whole) if split else whole

    # Unchecked: that all devices hold the same after a gather is not in the types.
    laid_out = jax.shard_map(
        part,
        mesh=groups.mesh,
        in_specs=(jax.tree.map(groups.before, specs),),
        out_specs=jax.tree.map(groups.after, out_specs),
        check_vma=False,
    )(weights)
    return jax.lax.with_sharding_constraint(laid_out, jax.tree.map(lambda spec: NamedSharding(target, spec), out_specs))


def generation_specs(shapes: dict, *, config: params_lib.ModelConfig, mesh: jax.sharding.Mesh, split: bool) -> dict:
    """Returns how stacked weights, given as arrays or shapes, are cut once they are laid out for generation."""
    shapes = jax.eval_shape(kv_cache.split_layers, shapes) if split else shapes
    axes = params_lib.axes_like(config, shapes)
    return sharding.param_specs(axes, shapes, mesh, layout=sharding.GENERATION)


def split_if_needed(params: dict, *, config: params_lib.ModelConfig, mesh: jax.sharding.Mesh) -> dict:
    """Returns stacked weights that are cut as generation has them already, taken apart by layer on a CPU."""
    if not splits(mesh):
        return params
    specs = generation_specs(params, config=config, mesh=mesh, split=True)
    shardings = jax.tree.map(lambda spec: NamedSharding(mesh, spec), specs)
    return jax.jit(kv_cache.split_layers, out_shardings=shardings)(params)
