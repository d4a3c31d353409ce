"""What a decoding program of a small model costs, by the real TPU compiler, against what is counted by hand."""

import planned
import pytest

from cgrpo_jax.inference import kv_cache
from cgrpo_jax.planning import planner, program_costs, programs, tpu_topology
from cgrpo_jax.runs.variants import Variants

WIDTH, MLP, HEADS, KV_HEADS, HEAD, VOCABULARY, LAYERS = 1024, 3072, 8, 2, 128, 16384, 2
SLOTS, TENSOR = 8, 2


def test_decoding_costs_its_weights_and_the_positions_that_it_reads(tmp_path):
    model = planned.describe(
        tmp_path / "policy",
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        num_hidden_layers=LAYERS,
    )
    long = {"max_response_length": 2008, "packing.length": 0, "refine.kind": "none", "mesh.tensor": TENSOR}
    config = planned.config(model, **long | {"engine.num_slots": SLOTS})
    settings = Variants(config).settings(lambda **sizes: tpu_topology.mesh("v5e:2x2", **sizes))
    engine = programs.engines(settings)["policy"]
    assert kv_cache.cache_length(engine.settings.length, split=False) == 4 * kv_cache.READ_STACKED
    decode = program_costs.CompiledCosts(engine, planner.kernel_cost).decode
    layer = 2 * WIDTH * HEADS * HEAD + 2 * WIDTH * KV_HEADS * HEAD + 3 * WIDTH * MLP
    weights = (LAYERS * layer + VOCABULARY * WIDTH) / TENSOR
    assert 2 * weights < decode.step.bytes < 1.25 * 2 * weights  # so small layers are fetched early, some twice
    assert decode.step.flops == pytest.approx(2 * SLOTS * weights, rel=0.001)
    # Keys and values in bfloat16; two products with each, for all query heads.
    assert decode.position.bytes == pytest.approx(2 * 2 * LAYERS * KV_HEADS * HEAD / TENSOR, rel=0.02)
    assert decode.position.flops == pytest.approx(4 * LAYERS * HEADS * HEAD / TENSOR)
    assert decode.step.collectives["all-reduce"] > 0 == decode.position.collectives.get("all-reduce", 0)
    assert 10 * LAYERS < decode.step.operations < 1000
