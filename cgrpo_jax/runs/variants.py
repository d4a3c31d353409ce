"""The settings of a run on devices that you do not have, and of runs that need less memory: what a plan tries.

variants = Variants(config)
settings = variants.settings(make_mesh)
smaller = variants.settings(make_mesh, {"packing.rows": 1})
"""

from collections.abc import Callable, Iterator, Mapping

import jax

from cgrpo_jax.models import transformer
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import validate
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.settings import RunSettings, run_settings

Changes = Mapping[str, object]  # keys of a configuration, and their values


class Variants:
    """A configuration as it may be changed to fit other devices, without any text or update being another.

    Args:
      config: the configuration, checked.
    """

    def __init__(self, config: Config):
        self._config = config

    def settings(
        self,
        make_mesh: Callable[..., jax.sharding.Mesh],
        changes: Changes | None = None,
        *,
        policy: ModelConfig | None = None,
        critic: ModelConfig | None = None,
        refiner: ModelConfig | None = None,
    ) -> RunSettings:
        """Returns the settings of the run, or of one with other values at some keys.

        Args:
          make_mesh: from sizes named `replica`, `fsdp` and `tensor`, a mesh of real or of described devices.
          changes: keys and their other values.
          policy, critic, refiner: shapes in the place of those that the configuration names.

        Raises:
          UserError: as of `run_settings`, or no run can have these changes.
        """
        config = self._config
        if changes:
            config = config_lib.replaced(config, changes)
            validate.check(config, trains=False)  # what it teaches is no matter of the devices
        m = config.mesh
        mesh = make_mesh(replica=m.replica, fsdp=m.fsdp, tensor=m.tensor)
        return run_settings(config, mesh, policy=policy, critic=critic, refiner=refiner)

    def meshes(self, num_devices: int) -> Iterator[Changes]:
        """Yields meshes with larger and larger tensor groups, from the run's own on.

        Those of generation stay, where they are of several of these groups; else they become the same.
        """
        m, times = self._config.mesh, 2
        yield {}
        while m.replica * m.tensor * times <= num_devices:
            changes: Changes = {"mesh.tensor": m.tensor * times}
            if m.fsdp:
                changes = {**changes, "mesh.fsdp": m.fsdp // times}
            if m.gen_tensor % (m.tensor * times):
                changes = {**changes, "mesh.gen_tensor": 0}
            yield changes
            times *= 2

    def fewer_slots(self, num_slots: int) -> Iterator[Changes]:
        """Yields fewer and fewer slots; `num_slots` are those of a run that takes as many as memory holds.

        Of a cache that may have pages, where memory says how many texts there are, less and less memory.
        """
        config = self._config
        if config.cache.gib and config.cache.kind != "contiguous":
            yield from ({"cache.gib": config.cache.gib / 2**halved} if halved else {} for halved in range(8))
            return
        slots = config.engine.num_slots or num_slots
        yield {}
        while slots > 1:
            slots //= 2
            changes: Changes = {"engine.num_slots": slots}
            if config.cache.gib:
                changes = {**changes, "cache.gib": 0.0}
            yield changes

    def smaller_batches(self) -> Iterator[Changes]:
        """Yields smaller and smaller packed batches, and more and more that the backward pass computes again."""
        config = self._config
        shortest = config.max_prompt_length + config.max_response_length - 1
        shortest += -shortest % 128  # so that the tensor axis can cut its tokens
        kinds = transformer.REMAT  # in their order: each computes more again than the one before, and stores less
        for kind in kinds[kinds.index(config.compute.remat) :]:
            rows = config.packing.rows
            more_changes = {} if kind == config.compute.remat else {"compute.remat": kind}
            yield more_changes
            while rows > 1:
                rows //= 2
                changes = {"packing.rows": rows}
                yield {**more_changes, **changes}
            if config.packing.length > shortest:
                changes = {"packing.rows": 1, "packing.length": shortest}
                yield {**more_changes, **changes}
