"""Slices as libtpu describes them: the devices, their order, the meshes on them; needs the extra `tpu`, no TPU."""

import jax
import numpy as np
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.planning import tpu_topology
from cgrpo_jax.runtime import chips


@pytest.mark.parametrize(
    ("name", "count", "kind"),
    [
        ("v4:2x2x4", 16, "TPU v4"),
        ("v5e:4x4", 16, "TPU v5 lite"),
        ("v5p:4x4x4", 64, "TPU v5"),
        ("v6e:8x8", 64, "TPU v6 lite"),
        ("tpu7x:2x2x1", 8, "TPU7x"),
        ("v5e:1x1", 1, "TPU v5 lite"),
    ],
)
def test_devices_are_those_of_the_slice(name, count, kind):
    chip, shape = tpu_topology.parse(name)
    devices = tpu_topology.devices(name)
    assert len(devices) == count == np.prod(shape) * chip.devices_per_chip
    assert {device.device_kind for device in devices} == {kind}
    assert {device.num_cores for device in devices} == {chip.cores}


def test_this_process_keeps_its_own_backend():
    before = jax.devices()
    tpu_topology.devices("v5e:2x2")
    assert jax.devices() == before
    assert {device.platform for device in before} == {"cpu"}


def test_order_is_host_by_host_and_x_first():
    coords = [tuple(device.coords) for device in tpu_topology.devices("v5p:4x4x4")]
    assert coords[:6] == [(0, 0, 0), (1, 0, 0), (0, 1, 0), (1, 1, 0), (2, 0, 0), (3, 0, 0)]
    assert coords[16] == (0, 0, 1)
    assert [device.process_index for device in tpu_topology.devices("v5p:2x2x4")] == [
        host for host in range(4) for _ in "1234"
    ]


@pytest.mark.parametrize(
    ("name", "tensor", "hops"),
    [
        ("v5p:4x4x4", 4, 1),
        ("v6e:4x4", 4, 1),
        ("v5e:8x8", 8, 1),
        ("v5e:8x8", 4, 1),  # half of an axis of the network
        ("v5p:2x2x4", 4, 2),  # a square of 2x2, which has links both ways
        ("tpu7x:2x2x1", 2, 0),  # the two halves of one chip
        ("v5p:2x2x1", 1, 0),
    ],
)
def test_the_tensor_axis_lies_on_neighbours(name, tensor, hops):
    devices = tpu_topology.devices(name)
    mesh = tpu_topology.mesh(name, replica=1, fsdp=len(devices) // tensor, tensor=tensor)
    assert mesh.devices.shape == (1, len(devices) // tensor, tensor)
    assert set(mesh.devices.flat) == set(devices)
    assert tpu_topology.tensor_hops(mesh) == hops


def test_devices_in_their_given_order_are_no_neighbours():
    # What the layout is for: in the order given, 8 in a row are two hosts, and going on to the next host is 2 links.
    devices = tpu_topology.devices("v5e:8x8")
    naive = jax.sharding.Mesh(np.array(devices).reshape(1, 8, 8), ("replica", "fsdp", "tensor"))
    assert tpu_topology.tensor_hops(naive) > tpu_topology.tensor_hops(
        tpu_topology.mesh("v5e:8x8", replica=1, fsdp=8, tensor=8)
    )


def test_what_libtpu_refuses_is_one_line(monkeypatch):
    monkeypatch.setattr(tpu_topology, "parse", lambda name: (chips.CHIPS["v5p"], (3, 5, 7)))
    with pytest.raises(UserError, match="topology 'v5p:3x5x7' was refused by libtpu .*not divisible") as said:
        tpu_topology.devices("v5p:3x5x7")
    assert "\n" not in str(said.value)
