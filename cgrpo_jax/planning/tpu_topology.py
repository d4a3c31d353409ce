"""TPU slices that you do not have: their chips' published limits, and devices that the real compiler compiles for.

    mesh = tpu_topology.mesh("v5p:2x2x4", replica=1, fsdp=4, tensor=4)   # 16 chips, none of them needed
    jax.jit(step).lower(shapes_with_shardings_on(mesh)).compile()

The compiler is libtpu's (extra `tpu`), a wheel that runs on any x86-64 Linux machine.
"""

import functools
import importlib.util
import os
import re
from typing import Any

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime.chips import CHIPS, Chip

_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",  # ask no metadata server: outside Google Cloud that waits for a timeout
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # any valid one: it is only read to start, and binds no later topology
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process on this machine aborts on a lock file
}


_FLAT = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL_SOLID = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_RULE = {
    2: "one of " + ", ".join("x".join(map(str, shape)) for shape in _FLAT),
    3: "2x2x1, 2x2x2, 2x2x4, 2x4x4, or multiples of 4 in ascending order such as 4x4x8, up to {} chips",
}


def num_slices(name: str) -> int:
    """Returns how many slices a topology's name asks for: 2 of "2xv6e:16x16", 1 of "v6e:16x16"."""
    match = re.match(r"([1-9]\d{0,3})x(?=[a-z])", name)
    return int(match[1]) if match else 1


def _one_slice(name: str) -> str:
    return re.sub(r"^[1-9]\d{0,3}x(?=[a-z])", "", name)


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """Returns the chip and the shape in chips of a slice that a topology's name gives.

    Args:
      name: CHIP:AxB or CHIP:AxBxC, as "v6e:4x4" or "v5p:4x4x4"; before it how many slices, as "2xv6e:16x16".

    Raises:
      UserError: no such chip, or no such slice of it.

    Example:
      parse("v5p:4x4x4") == (CHIPS["v5p"], (4, 4, 4))
    """
    match = re.fullmatch(r"([a-z][a-z0-9]*):([1-9]\d{0,4}(?:x[1-9]\d{0,4})*)", _one_slice(name))
    if not match:
        raise UserError(f"topology {name!r} is no CHIP:AxB or CHIP:AxBxC; write it like v6e:4x4 or v5p:4x4x4.")
    kind, shape = match[1], tuple(map(int, match[2].split("x")))
    if kind not in CHIPS:
        raise UserError(f"topology {name!r} names an unknown chip {kind!r}; use one of {', '.join(CHIPS)}.")
    chip = CHIPS[kind]
    # libtpu takes more than can be rented (v5p:4x4x400); what the documentation lists is what exists.
    cubes = len(shape) == 3 and not any(size % 4 for size in shape) and list(shape) == sorted(shape)
    listed = shape in _FLAT if chip.axes == 2 else shape in _SMALL_SOLID or cubes
    if not listed or int(np.prod(shape)) > chip.max_chips:
        rule = _RULE[chip.axes].format(chip.max_chips)
        raise UserError(f"topology {name!r} does not exist; slices of {kind} are {rule}.")
    return chip, shape


def prepare() -> None:
    """Lets this process compile for TPUs on a machine without one; `devices` calls it.

    libtpu reads the environment when it is loaded, which is when the first topology is asked for, so this may come
    after `import jax`, and even after JAX has started its CPU backend. It must come before anything makes JAX look for
    a real TPU: this sets JAX's platform to cpu, so that nothing does.
    """
    os.environ.update(_ENVIRONMENT)
    jax.config.update("jax_platforms", "cpu")


def devices(name: str) -> list[Any]:
    """Returns the devices of a slice, in the order in which JAX gives them on the real one.

    That is slice by slice, host by host, hosts along x first, then y, then z; within a host (2x2 chips) x, then y;
    then, on chips of two devices, the device. They can be compiled for; nothing can be put on them.

    Args:
      name: as `parse` takes it.

    Raises:
      UserError: no such topology, or libtpu is not installed.
    """
    _, shape = parse(name)
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("libtpu, the compiler for TPUs, is not installed; run: pip install 'cgrpo_jax[tpu]'.")
    prepare()
    return list(_described(_one_slice(name), one_chip=shape == (1, 1), slices=num_slices(name)))


@functools.cache  # a second description's devices would not equal the first's, and arrays on both would not go together
def _described(name: str, *, one_chip: bool, slices: int) -> tuple[Any, ...]:
    options = dict(CHIPS[name.split(":")[0]].options)
    if one_chip:
        options["chips_per_host_bounds"] = [1, 1, 1]  # libtpu otherwise takes a host of 2x2
    if slices > 1:
        options["num_slices"] = slices
    try:
        description = topologies.get_topology_desc(platform="tpu", topology_name=name, **options)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"topology {name!r} was refused by libtpu ({reason}); use another.") from error
    return tuple(description.devices)


def mesh(name: str, *, replica: int = 1, fsdp: int = 0, tensor: int = 1) -> Mesh:
    """Returns the mesh of a slice, laid out as on the real one.

    Of several slices each has as many replicas as are asked for, where these do not divide among them: `replica=1` is a
    whole copy a slice.

    Raises:
      UserError: no such topology, libtpu is not installed, or the axes do not multiply to the number of devices.
    """
    slices = num_slices(name)
    replica *= slices if replica % slices else 1
    return sharding.make_mesh(replica=replica, fsdp=fsdp, tensor=tensor, devices=devices(name))


def tensor_hops(mesh: Mesh) -> int:
    """Returns the most links between two successive members of any tensor group: 0 alone or on one chip, 1 in a line.

    2 is a group that fills a block, as 2x2 chips, or two lines side by side: still all neighbours of the block.

    Args:
      mesh: on devices with coordinates.
    """
    coords = np.array([device.coords for device in mesh.devices.flat]).reshape(*mesh.devices.shape, -1)
    return int(np.abs(np.diff(coords, axis=2)).sum(-1).max(initial=0))
