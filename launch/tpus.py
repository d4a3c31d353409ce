"""TPU slices by name, such as v5e:4x4: how many chips and hosts they have, and what Cloud TPU and GKE call them.

Names are those of `python -m cgrpo_jax.plan --topology`. Sources: "Plan TPUs in GKE" and the Cloud TPU pages of each
version. A host has 4 chips, but for slices of one chip and the 8-chip hosts of v5e and v6e.
"""

import dataclasses
import math
import re

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib

_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SMALL_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4")


@dataclasses.dataclass(frozen=True)
class Generation:
    """One TPU version.

    Attributes:
      gke: value of the node label cloud.google.com/gke-tpu-accelerator.
      cloud: name in Cloud TPU's accelerator types; empty if only GKE has it.
      runtime: Cloud TPU's software version for JAX.
      max_chips: of a three-dimensional slice; 0 for the two-dimensional versions.
    """

    gke: str
    cloud: str
    runtime: str
    max_chips: int = 0


GENERATIONS = {
    "v4": Generation("tpu-v4-podslice", "v4", "tpu-ubuntu2204-base", 4096),
    "v5e": Generation("tpu-v5-lite-podslice", "v5litepod", "v2-alpha-tpuv5-lite"),
    "v5p": Generation("tpu-v5p-slice", "v5p", "v2-alpha-tpuv5", 6144),
    "v6e": Generation("tpu-v6e-slice", "v6e", "v2-alpha-tpuv6e"),
    "tpu7x": Generation("tpu7x", "", "", 9216),
}


@dataclasses.dataclass(frozen=True)
class Slice:
    """A slice that exists: `generation` and `topology` as in v5e:4x4, and its parts."""

    name: str
    generation: Generation
    topology: str
    chips: int
    chips_per_host: int

    @property
    def hosts(self) -> int:
        return self.chips // self.chips_per_host

    def cloud_flags(self) -> list[str]:
        """Returns the flags with which gcloud names the slice.

        Raises:
          UserError: Cloud TPU does not have this version.
        """
        if not self.generation.cloud:
            raise UserError(f"{self.name} is on GKE only; use launch/render_gke.py, or another --topology")
        if self.generation.max_chips:  # one count of chips has several shapes
            return [f"--type={self.generation.cloud}", f"--topology={self.topology}"]
        return [f"--accelerator-type={self.generation.cloud}-{self.chips}"]


def find(name: str) -> Slice:
    """Returns the slice of a name such as v5e:4x4.

    Raises:
      UserError: there is no such version or topology.

    Example:
      >>> find("v5p:2x2x4").hosts
      4
    """
    version, _, topology = name.partition(":")
    if version not in GENERATIONS:
        close = config_lib.suggestion(version, list(GENERATIONS))
        raise UserError(
            f"--topology={name}: no TPU version {version!r}{close}; use VERSION:TOPOLOGY, such as v5e:4x4, with one of "
            f"{', '.join(GENERATIONS)}"
        )
    generation = GENERATIONS[version]
    if not (_is_cube(topology, generation.max_chips) if generation.max_chips else topology in _FLAT):
        raise UserError(f"--topology={name}: {version} has no topology {topology!r}; it has {_topologies(generation)}")
    chips = math.prod(map(int, topology.split("x")))
    flat_host = chips <= 8 and not generation.max_chips
    return Slice(name, generation, topology, chips, chips if flat_host else 4)


def _is_cube(topology: str, max_chips: int) -> bool:
    if topology in _SMALL_CUBES:
        return True
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", topology):
        return False
    sides = [int(side) for side in topology.split("x")]
    return sides == sorted(sides) and not any(side % 4 for side in sides) and math.prod(sides) <= max_chips


def _topologies(generation: Generation) -> str:
    if not generation.max_chips:
        return ", ".join(_FLAT)
    return (
        f"{', '.join(_SMALL_CUBES)}, and AxBxC of multiples of 4, A <= B <= C, up to {generation.max_chips} chips, "
        "such as 4x4x8"
    )
