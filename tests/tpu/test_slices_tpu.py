"""A small run planned on two slices with the real TPU compiler; needs the extra `tpu`, no TPU."""

import dataclasses

import planned
import pytest

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.planning import planner as planner_lib
from cgrpo_jax.planning import programs, tpu_topology
from cgrpo_jax.runs.variants import Variants

NAME = "2xv5e:2x2"
WIDTH, MLP, HEADS, HEAD, VOCABULARY, LAYERS = 256, 512, 2, 128, 1024, 2


def test_each_slice_holds_a_whole_copy():
    mesh = tpu_topology.mesh(NAME, fsdp=2, tensor=2)
    assert dict(mesh.shape) == {"replica": 2, "fsdp": 2, "tensor": 2}
    for number, replica in enumerate(mesh.devices):
        assert {device.slice_index for device in replica.flat} == {number}
    assert tpu_topology.mesh(NAME, replica=4, fsdp=1, tensor=2).shape["replica"] == 4
    assert tpu_topology.mesh("v5e:2x2", fsdp=2, tensor=2).shape["replica"] == 1


def test_slices_that_cut_a_replica_are_refused():
    with pytest.raises(UserError, match="mesh.replica 1 does not divide among 2 slices.*use a multiple of 2"):
        sharding.make_mesh(replica=1, fsdp=4, tensor=2, devices=tpu_topology.devices(NAME))


def test_an_update_is_planned_and_its_gradients_alone_go_between_slices(tmp_path, monkeypatch):
    def updating(*args, of=programs.of, **keywords):  # the update alone, for time
        found = of(*args, **keywords)
        return dataclasses.replace(found, calls=tuple(call for call in found.calls if call.name == "update"))

    monkeypatch.setattr(programs, "of", updating)
    model = planned.describe(
        tmp_path / "policy",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD,
        num_hidden_layers=LAYERS,
    )
    small = {"engine.num_slots": 4, "refine.kind": "none", "num_responses": 2, "packing.rows": 1, "packing.length": 128}
    said = []
    planner = planner_lib.Planner(Variants(planned.config(model, **small)), NAME, say=said.append)
    plan = planner.plan(costs=False)
    assert plan.fits and said[0] == f"{NAME}: 2 slices, mesh.replica=2"
    layer = 4 * WIDTH * HEADS * HEAD + 3 * WIDTH * MLP
    gradients = 4 * (LAYERS * layer + 2 * VOCABULARY * WIDTH) / 4  # float32, a part on each of 4 devices
    accumulate, apply = (planner.compiled[key].cost for key in planner.compiled)
    assert accumulate.dcn + apply.dcn == pytest.approx(gradients, rel=0.05)  # each slice sends its own once
