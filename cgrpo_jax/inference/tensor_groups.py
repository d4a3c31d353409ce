"""From the tensor groups of training to larger ones on the same devices: how weights are dealt out over these."""

import functools
from collections.abc import Sequence

import jax
from jax.sharding import Mesh, PartitionSpec

from cgrpo_jax.sharding import FSDP, REPLICA, TENSOR, spec_of


class Groups:
    """Tensor groups of a mesh, and the larger ones of another on the same devices, of several each.

    Args:
      mesh: the one, of training.
      target: the other, from `sharding.generation_mesh`.

    Attributes:
      mesh: the devices as both have them: an axis more, of the tensor groups that become one.
    """

    _MEMBER = "member"  # of which of the tensor groups a device is, of those that become one

    def __init__(self, mesh: Mesh, target: Mesh):
        self.times, self._tensor = target.shape[TENSOR] // mesh.shape[TENSOR], mesh.shape[TENSOR]
        sizes = (mesh.shape[REPLICA], mesh.shape[FSDP] // self.times, self.times, self._tensor)
        self.mesh = Mesh(mesh.devices.reshape(sizes), (REPLICA, FSDP, self._MEMBER, TENSOR))

    def before(self, spec: PartitionSpec) -> PartitionSpec:
        """Returns how what is cut so on the one mesh is cut on that of both."""
        return spec_of([(FSDP, self._MEMBER) if axis == FSDP else axis for axis in spec])

    def after(self, spec: PartitionSpec) -> PartitionSpec:
        """Returns how what is cut so on the other mesh is cut on that of both."""
        return spec_of([(self._MEMBER, TENSOR) if axis == TENSOR else axis for axis in spec])

    def dealt(
        self, x: jax.Array, names: Sequence[str], before: PartitionSpec, after: PartitionSpec, *, embed_dim: int
    ) -> jax.Array:
        """Returns a weight, gathered over fsdp and dealt out over the larger tensor groups; within a program.

        Args:
          x: this device's part of it.
          names: its axes, as `params.axes_like` names them.
          before, after: how it is cut on the one mesh and on the other.
          embed_dim: the whole size of the embed axis.
        """
        gather, member = functools.partial(jax.lax.all_gather, tiled=True), self._MEMBER
        embed = names.index("embed") if "embed" in names and x.shape[names.index("embed")] < embed_dim else None
        if self.times == 1:
            return x if embed is None else gather(x, FSDP, axis=embed)
        was, is_ = (next((i for i, axis in enumerate(spec) if axis == TENSOR), None) for spec in (before, after))
        if is_ is None:
            x = x if embed is None else gather(x, (FSDP, member), axis=embed)
            return x if was is None else gather(x, TENSOR, axis=was)
        # Along that axis training's groups cut it too, where they have more than one device. Each keeps its share of
        # what it has, so that no device holds more of a weight than it will; then these shares go to where the order of
        # the larger group's devices has them.
        if embed is None:
            x = _own_part(x, is_, jax.lax.axis_index(member), self.times)
        else:
            x = jax.lax.all_to_all(x, member, split_axis=is_, concat_axis=embed, tiled=True)
            x = gather(x, FSDP, axis=embed)
        if self._tensor == 1:  # they are there
            return x
        moves = [(m * self._tensor + t, t * self.times + m) for m in range(self.times) for t in range(self._tensor)]
        return jax.lax.ppermute(x, (member, TENSOR), moves)


def _own_part(x: jax.Array, axis: int, which: jax.Array, parts: int) -> jax.Array:
    size = x.shape[axis] // parts
    return jax.lax.dynamic_slice_in_dim(x, which * size, size, axis)
