"""Which axis of a parameter lies along which axis of the mesh: one table, from logical names to the mesh.

The mesh has three axes: `replica` (whole copies), `fsdp` (parameters and optimiser state cut up, gathered layer by
layer), `tensor` (heads, MLP and vocabulary cut up, each chip computing its part).
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("replica", "fsdp", "tensor")
# Logical axis of a parameter -> mesh axis; what is not named is not cut.
AXES = {"embed": "fsdp", "heads": "tensor", "mlp": "tensor", "vocab": "tensor"}


def make_mesh(*, replica: int = 1, fsdp: int = 0, tensor: int = 1, devices: Sequence | None = None) -> Mesh:
    """Returns the mesh over all devices of all processes; `fsdp=0` takes what the other axes leave.

    Raises:
      ValueError: the axes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else list(devices)
    fsdp = fsdp or len(devices) // (replica * tensor)
    if replica * fsdp * tensor != len(devices):
        raise ValueError(f"a mesh of {replica} x {fsdp} x {tensor} does not take {len(devices)} devices; change it.")
    return Mesh(np.asarray(devices).reshape(replica, fsdp, tensor), MESH_AXES)


def param_shardings(logical_axes: dict, shapes: dict, mesh: Mesh) -> dict:
    """Returns how each parameter lies on the mesh; an axis that the mesh does not divide is not cut.

    Args:
      logical_axes: pytree of tuples of axis names, as `model.logical_axes` returns it.
      shapes: the same tree with arrays or `jax.ShapeDtypeStruct`s.
      mesh: from `make_mesh`.
    """

    def place(leaf, axes):
        spec = [AXES.get(axis) for axis in axes]
        fits = [name and size % mesh.shape[name] == 0 for name, size in zip(spec, leaf.shape, strict=True)]
        return NamedSharding(
            mesh, PartitionSpec(*(name if fit else None for name, fit in zip(spec, fits, strict=True)))
        )

    return jax.tree.map(place, shapes, logical_axes)
