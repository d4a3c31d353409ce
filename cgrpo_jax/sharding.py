"""The mesh, and which axis of an array lies along which axis of it: one table, from logical names to the mesh.

The mesh has three axes: `replica` (whole copies), `fsdp` (parameters and optimiser state cut up, gathered layer by
layer), `tensor` (heads, MLP and vocabulary cut up, each device computing its part). Rows of a batch are dealt out over
`replica` and `fsdp`; one coordinate of these two is a *data group*.

Weights have two layouts. `TRAINING` cuts them along `fsdp` and `tensor`; `GENERATION` along `tensor` alone, so that a
token costs no gathering. Generation may have a mesh of its own on the same devices, with larger tensor groups
(`generation_mesh`): where few texts are left, each step reads each weight from more of them.

Programs are written for one device's part (`jax.shard_map`), and see from shapes what is cut: an axis that is shorter
than the model's configuration says is a part of it. So the same code runs where nothing is cut.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cgrpo_jax.errors import UserError

REPLICA, FSDP, TENSOR = "replica", "fsdp", "tensor"
DATA = (REPLICA, FSDP)
TRAINING, GENERATION = (FSDP, TENSOR), (TENSOR,)
# Logical axis of a parameter -> mesh axis; what is not named is not cut.
AXES = {"embed": FSDP, "heads": TENSOR, "kv_heads": TENSOR, "mlp": TENSOR, "vocab": TENSOR}

BY_ROWS = PartitionSpec(DATA)
STACKED_BY_ROWS = PartitionSpec(None, DATA)
WHOLE = PartitionSpec()


def make_mesh(*, replica: int = 1, fsdp: int = 0, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """Returns the mesh over all devices of all processes; `fsdp=0` takes what the other axes leave.

    On TPUs the tensor axis gets whole axes of the network, or a block of neighbours; other devices keep their order.
    Of several slices each holds whole replicas: only what `replica` exchanges goes over the network between them.

    Raises:
      UserError: an axis is no size, the axes do not multiply to the number of devices, or slices cut a replica.
    """
    devices = jax.devices() if devices is None else list(devices)
    for name, size in (("replica", replica), ("tensor", tensor), ("fsdp", fsdp or 1)):
        if size < 1:
            more = ", or 0 for what the other axes leave" if name == "fsdp" else ""
            raise UserError(f"mesh.{name} {size} is no size; use at least 1{more}.")
    sizes = (replica, fsdp or max(1, len(devices) // (replica * tensor)), tensor)
    if np.prod(sizes) != len(devices):
        raise UserError(
            f"a mesh of replica {sizes[0]} x fsdp {sizes[1]} x tensor {sizes[2]} takes {np.prod(sizes)} devices, there "
            f"are {len(devices)}; change mesh.replica, mesh.fsdp or mesh.tensor."
        )
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    if sizes[0] % slices:
        raise UserError(
            f"mesh.replica {sizes[0]} does not divide among {slices} slices, each of which holds whole replicas; use a "
            f"multiple of {slices}."
        )
    if slices > 1:
        within = (sizes[0] // slices, *sizes[1:])
        laid_out = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
    elif hasattr(devices[0], "coords"):
        laid_out = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        laid_out = np.asarray(devices).reshape(sizes)
    return Mesh(laid_out, (REPLICA, FSDP, TENSOR))


def generation_mesh(mesh: Mesh, tensor: int) -> Mesh:
    """Returns the mesh of generation: tensor groups of `tensor` of the same devices, in their order; 0: as in `mesh`.

    Raises:
      UserError: it is no multiple of the tensor groups of `mesh`, or does not divide its devices.

    Example:
      # of fsdp 4 x tensor 4
      generation_mesh(mesh, 8).shape == {"replica": 1, "fsdp": 2, "tensor": 8}
    """
    replica, fsdp, own = (mesh.shape[name] for name in (REPLICA, FSDP, TENSOR))
    if tensor in (0, own):
        return mesh
    if tensor < 0 or tensor % own or fsdp % (tensor // own):
        able = [own * times for times in range(1, fsdp + 1) if fsdp % times == 0]
        raise UserError(
            f"mesh.gen_tensor {tensor} cuts no mesh of fsdp {fsdp} x tensor {own}; use one of "
            f"{', '.join(map(str, able))}, or 0 for mesh.tensor."
        )
    return Mesh(mesh.devices.reshape(replica, -1, tensor), mesh.axis_names)


def one_device() -> Mesh:
    """Returns the mesh that holds this process's first device alone."""
    return make_mesh(devices=jax.local_devices()[:1])


def num_groups(mesh: Mesh) -> int:
    """Returns the number of data groups."""
    return mesh.shape[REPLICA] * mesh.shape[FSDP]


def param_specs(axes: Any, shapes: Any, mesh: Mesh, *, layout: Sequence[str] = TRAINING) -> Any:
    """Returns how each parameter is cut; an axis that the mesh does not divide is left whole.

    Args:
      axes: pytree of tuples of axis names, as `params.axes_like` returns it.
      shapes: the same tree with arrays or `jax.ShapeDtypeStruct`s.
      mesh: from `make_mesh`.
      layout: `TRAINING` or `GENERATION`.
    """

    def cut(name: str | None, size: int) -> str | None:
        # An axis of one device cuts nothing, so that a program over it does not think that it must exchange.
        return name if name in layout and mesh.shape[name] > 1 and size % mesh.shape[name] == 0 else None

    def spec(leaf, names):
        return spec_of([cut(AXES.get(name), size) for name, size in zip(names, leaf.shape, strict=True)])

    return jax.tree.map(spec, shapes, axes)


def spec_of(axes: Sequence[Any]) -> PartitionSpec:
    """Returns a specification as programs write it of what they return: what takes that is not compiled again."""
    axes = list(axes)
    while axes and axes[-1] is None:
        axes.pop()
    return PartitionSpec(*axes)


def param_shardings(axes: Any, shapes: Any, mesh: Mesh, *, layout: Sequence[str] = TRAINING) -> Any:
    """Returns `param_specs` on the mesh."""
    specs = param_specs(axes, shapes, mesh, layout=layout)
    return jax.tree.map(lambda _, spec: NamedSharding(mesh, spec), shapes, specs)


def placed(axes: Any, shapes: Any, mesh: Mesh, *, layout: Sequence[str] = TRAINING) -> Any:
    """Returns `shapes` as `jax.ShapeDtypeStruct`s that say where each array lies, as templates to read into."""
    return jax.tree.map(
        lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where),
        shapes,
        param_shardings(axes, shapes, mesh, layout=layout),
    )


def shardings_of(tree: Any) -> Any:
    """Returns where each array, or `jax.ShapeDtypeStruct` from `placed`, lies."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def whole_beside(array: Any) -> jax.sharding.Sharding:
    """Returns where an array lies that is whole on each device that `array` lies on."""
    where = array.sharding
    return NamedSharding(where.mesh, WHOLE) if isinstance(where, NamedSharding) else where


def deal(tree: Any, mesh: Mesh, *, spec: PartitionSpec = BY_ROWS) -> Any:
    """Returns host arrays, the same on every process, on the mesh: `spec` says what is dealt out to the data groups."""
    return put(tree, jax.tree.map(lambda _: NamedSharding(mesh, spec), tree))


def put(tree: Any, shardings: Any) -> Any:
    """Returns host arrays, the same on every process, where `shardings` say.

    Not `jax.device_put`: of an array on one device it makes one without shards (JAX 0.10) where it is to be whole on
    each of several processes with one device each, as with a GPU a process.
    """
    return jax.tree.map(lambda x, where: jax.make_array_from_callback(x.shape, where, x.__getitem__), tree, shardings)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns arrays whole on every device: within a program, so that every process can read its results."""
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, WHOLE))


def read(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """Returns the whole of an array that is dealt out over a mesh, on the host of every process.

    Of what lies on other processes' devices one place of the last axis comes at a time, so that no device holds more
    than that beside its own part, however many devices there are.
    """
    return np.asarray(x) if x.is_fully_addressable else read_by_places(x, mesh)


def read_by_places(x: jax.Array, mesh: Mesh) -> np.ndarray:
    """Returns what `read` does, as it does between processes."""
    return np.stack([np.asarray(place_of(x, place, mesh=mesh)) for place in range(x.shape[-1])], axis=-1)


@functools.partial(jax.jit, static_argnames="mesh")
def place_of(x: jax.Array, place: int, *, mesh: Mesh) -> jax.Array:
    """Returns one place of the last axis, whole on every device."""
    return replicate(jax.lax.dynamic_index_in_dim(x, place, axis=-1, keepdims=False), mesh)


# --- inside a program, on one device's part -----------------------------------------------------------------------


def gather(x: jax.Array, names: Sequence[str], embed_dim: int) -> jax.Array:
    """Returns a weight with its embed axis whole: gathered over fsdp if it is cut; its gradient is scattered likewise.

    Args:
      x: this device's part of the weight.
      names: its axes, as `params.axes_like` names them.
      embed_dim: the whole size of the embed axis.
    """
    if "embed" not in names or x.shape[names.index("embed")] == embed_dim:
        return x
    return jax.lax.all_gather(x, FSDP, axis=names.index("embed"), tiled=True)


def part_of(part: int, size: int) -> jax.Array | int:
    """Returns where this device's `part` of an axis of `size` that tensor may cut begins."""
    return 0 if part == size else jax.lax.axis_index(TENSOR) * part


def sum_if_cut(x: jax.Array, part: int, size: int) -> jax.Array:
    """Adds up over tensor what each device computed from its `part` of `size`."""
    return x if part == size else jax.lax.psum(x, TENSOR)


def share_of_sum(x_BSD: jax.Array, part: int, size: int, num_tokens: int) -> jax.Array:
    """Adds up like `sum_if_cut`, each device of tensor its share of the tokens; `gather_tokens` undoes the dealing out.

    Args:
      x_BSD: what this device computed from its `part` of `size`, of all tokens.
      part, size: as for `sum_if_cut`.
      num_tokens: in a share; the tokens of all rows, one row after the other, divide by it.

    Returns:
      `[1, num_tokens, D]`
    """
    B, S, D = x_BSD.shape
    if part == size:
        first = part_of(num_tokens, B * S)
        return jax.lax.dynamic_slice_in_dim(x_BSD.reshape(1, B * S, D), first, num_tokens, axis=1)
    # One share after the other, on an axis of their own: behind an axis of 1, XLA:TPU would send all to all devices.
    return jax.lax.psum_scatter(x_BSD.reshape(B * S // num_tokens, num_tokens, D), TENSOR)[None]


def gather_tokens(x_BSD: jax.Array, rows: Sequence[int], *, alike: bool = False) -> jax.Array:
    """Returns all tokens, of which the devices of tensor may have a share each.

    Args:
      x_BSD: this device's: all of them, or `share_of_sum`.
      rows: `(B, S)` of all.
      alike: every device goes on with the same, so that the gradient that reaches it is the whole one. Else it is a
        part, and parts are added up.
    """
    if x_BSD.shape[:2] == tuple(rows):
        return x_BSD
    shares = jax.lax.all_gather(x_BSD[0], TENSOR, to="invarying" if alike else "varying")
    return shares.reshape(*rows, -1)


def varying_like(x: Any, *others: jax.Array) -> Any:
    """Marks arrays as ones that may differ between devices wherever one of `others` may.

    A loop's state must be marked so from its start; and the gradient of a thing that is the same on several devices is
    added up over them where this is applied to it.
    """
    axes = frozenset().union(*map(_varying, others))

    def mark(leaf):
        new = tuple(axes - _varying(leaf))
        return jax.lax.pcast(leaf, new, to="varying") if new else leaf

    return jax.tree.map(mark, x)


def unchecked(function: Callable, *args: Any) -> Any:
    """Runs a function that has Pallas calls in it inside a `jax.shard_map` that checks what varies between devices.

    A kernel's results don't say over which axes they vary, which that check wants to know. So it runs in a shard_map
    of its own, which takes no further axes and does not check, and its results are marked afterwards: whatever comes
    from arguments that vary does.
    """
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return function(*args)
    leaves, tree = jax.tree.flatten(args)

    def unmarked(longer):
        # Reshaped where nothing is checked, arrays lose their marks: derivatives then have the types of what they are
        # derivatives of, none marked. An axis of 1 costs nothing.
        return function(*jax.tree.unflatten(tree, [x.reshape(x.shape[1:]) for x in longer]))

    longer = [leaf[None] for leaf in leaves]
    out = jax.shard_map(unmarked, in_specs=(WHOLE,), out_specs=WHOLE, check_vma=False)(longer)
    return varying_like(out, *leaves)


def varying_over_data(x: jax.Array) -> jax.Array:
    """Marks an array as one that may differ between data groups: its gradient is then each group's own."""
    new = _shared_by(x)
    return jax.lax.pcast(x, new, to="varying") if new else x


def in_one_group(tree: Any) -> Any:
    """Returns arrays in the first of the data groups that share them, and 0 in the others, marked to vary.

    What the groups add to it and `sum_over_groups_of` are thereby added to it once.
    """

    def keep(x):
        shared = _shared_by(x)
        if not shared:
            return x
        first = functools.reduce(jnp.logical_and, [jax.lax.axis_index(axis) == 0 for axis in shared])
        return jnp.where(first, varying_over_data(x), 0)

    return jax.tree.map(keep, tree)


def sum_over_groups_of(x: jax.Array, like: jax.Array) -> jax.Array:
    """Returns the sum of `x` over the data groups that share `like`."""
    shared = _shared_by(like)
    return jax.lax.psum(x, shared) if shared else x


def _shared_by(x: jax.Array) -> tuple[str, ...]:
    """Returns the axes of data groups along which an array does not differ."""
    return tuple(axis for axis in DATA if axis not in _varying(x))


def _varying(x) -> frozenset[str]:
    return jax.typeof(x).manual_axis_type.varying
