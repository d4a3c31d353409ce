"""Names of TPU slices, their limits, and meshes on devices that have no coordinates; none of it needs libtpu."""

import dataclasses
import sys

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.planning import tpu_topology
from cgrpo_jax.runtime import chips


def test_a_name_gives_chip_and_shape():
    assert tpu_topology.parse("v5p:4x4x4") == (chips.CHIPS["v5p"], (4, 4, 4))
    assert tpu_topology.parse("v6e:4x4") == (chips.CHIPS["v6e"], (4, 4))


@pytest.mark.parametrize(
    "name", ["v5e:1x1", "v5e:8x8", "v6e:16x16", "v4:2x2x1", "v5p:2x2x4", "v5p:16x16x24", "tpu7x:8x16x16", "v4:4x4x4"]
)
def test_slices_that_exist(name):
    tpu_topology.parse(name)


@pytest.mark.parametrize(
    "name",
    ["v5p:3x5x7", "v5e:3x4", "v5e:16x32", "v5e:4x4x4", "v5p:4x4", "v5p:4x4x400", "v5p:8x4x4", "v5p:2x2x8", "v6e:2x1"],
)
def test_slices_that_do_not_exist(name):
    with pytest.raises(
        UserError, match=f"topology '{name}' does not exist; slices of {name.split(':')[0]} are "
    ) as said:
        tpu_topology.parse(name)
    assert "\n" not in str(said.value)


def test_a_number_of_slices_comes_first():
    assert tpu_topology.parse("2xv6e:16x16") == (chips.CHIPS["v6e"], (16, 16))
    assert [tpu_topology.num_slices(name) for name in ("2xv6e:16x16", "12xtpu7x:2x2x1", "v6e:4x4")] == [2, 12, 1]
    for name in ("0xv6e:4x4", "2x2xv6e:4x4", "xv6e:4x4", "2x:4x4"):
        with pytest.raises(UserError, match="topology|unknown chip"):
            tpu_topology.parse(name)


@pytest.mark.parametrize("name", ["h100:2x2", "v5:2x2x1", "tpu:4x4"])
def test_an_unknown_chip(name):
    with pytest.raises(UserError, match="unknown chip .*; use one of v4, v5e, v5p, v6e, tpu7x"):
        tpu_topology.parse(name)


@pytest.mark.parametrize("name", ["", "v5p", "v5p:", "v5p:4x", "v5p-128", "V5P:4x4x4", "v5p:0x4x4", "v5p:4x4x4 "])
def test_what_is_no_topology(name):
    with pytest.raises(UserError, match="write it like v6e:4x4 or v5p:4x4x4"):
        tpu_topology.parse(name)


def test_without_libtpu_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(UserError, match=r"libtpu.* is not installed; run: pip install 'cgrpo_jax\[tpu\]'"):
        tpu_topology.devices("v5e:2x2")


def test_a_device_of_a_divided_chip_has_its_half():
    half, whole = chips.CHIPS["tpu7x"], chips.CHIPS["v5p"]
    assert (half.devices_per_chip, whole.devices_per_chip) == (2, 1)
    assert 2 * half.flops == 2307e12
    assert 2 * half.hbm_bytes < 192 * chips.GIB


@pytest.mark.parametrize("field", ["hbm_bytes", "flops", "hbm_bandwidth", "ici_bandwidth"])
def test_a_pod_chip_outdoes_the_chip_before_it(field):
    order = [("v4", "v5p"), ("v5e", "v6e"), ("v5e", "v5p")]
    assert all(getattr(chips.CHIPS[old], field) < getattr(chips.CHIPS[new], field) for old, new in order)


def test_limits_are_given_for_every_chip():
    for chip in chips.CHIPS.values():
        assert all(dataclasses.asdict(chip)[name] > 1e9 for name in ("hbm_bytes", "flops", "hbm_bandwidth"))
