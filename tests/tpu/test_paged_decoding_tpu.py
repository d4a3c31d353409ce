"""Decoding from pages compiled by the real TPU compiler, at the shapes of Qwen3-8B; it has run on no TPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import planned
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import weights
from cgrpo_jax.inference.paged import cache as paged_cache
from cgrpo_jax.inference.paged import decoding as paged_decoding
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.paged.decoding import Chunks
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.planning import hlo, planner, tpu_topology
from cgrpo_jax.runs.variants import Variants

LAYERS, TENSOR, SIZE, EACH = 3, 4, 64, 256
QWEN3_8B = ModelConfig(
    vocab_size=151936, num_layers=LAYERS, embed_dim=4096, mlp_dim=12288, num_heads=32, num_kv_heads=8, head_dim=128,
    qk_norm=True, tie_embeddings=False, norm_eps=1e-6, rope_theta=1e6,
)  # fmt: skip
GEMMA = dataclasses.replace(
    QWEN3_8B, local_layers=(True, False, True), window=1024, attention_softcap=50.0, num_kv_heads=4, num_heads=16
)


@functools.cache
def compiled(topology, texts, tokens=0, config=QWEN3_8B, prompts=8, number=1024):
    mesh = tpu_topology.mesh(topology, fsdp=0, tensor=TENSOR)
    groups, pages = sharding.num_groups(mesh), Pages(number, SIZE, tokens=tokens, prompts=prompts, kernel=True)
    shapes = params_lib.param_shapes(config)
    params = weights.generation_shapes(shapes, config=config, mesh=mesh, dtype=jnp.bfloat16, split=False)
    pool = jax.eval_shape(
        lambda: paged_cache.empty_pool(config, pages, groups=groups, tensor=TENSOR, dtype=jnp.bfloat16, split=False)
    )
    where = P(None, sharding.DATA, None, sharding.TENSOR)

    def placed(shape, dtype, spec):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))

    def rows(*shape, dtype=jnp.int32):
        return placed((groups * shape[0], *shape[1:]), dtype, sharding.BY_ROWS)

    chunks = Chunks(*(rows(tokens) for _ in range(3)), rows(prompts), rows(prompts), rows(prompts, EACH))
    slots = (rows(texts), rows(texts), rows(texts, dtype=jnp.bool_), rows(texts, EACH), chunks if tokens else None)

    def part(params, pool, *slots):
        return paged_decoding.step(params, config, pool, *slots, pages=pages)

    specs = jax.tree.map(lambda leaf: leaf.sharding.spec, params)
    step = jax.shard_map(
        part,
        mesh=mesh,
        in_specs=(specs, where, *[jax.tree.map(lambda _: sharding.BY_ROWS, one) for one in slots]),
        out_specs=(sharding.BY_ROWS, where),
    )
    lowered = jax.jit(step, donate_argnums=1).lower(params, placed(pool.shape, pool.dtype, where), *slots)
    return lowered.compile()


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x4", "v6e:4x4"])
def test_it_compiles_with_one_kernel_a_layer_and_writes_the_pool_in_place(topology):
    program = compiled(topology, 64)
    (call,) = [one for one in hlo.kernel_calls(program.as_text()) if "ragged_paged_attention" in one.name]
    assert call.times == LAYERS
    assert program.memory_analysis().temp_size_in_bytes < 2**21  # the pool of a device has 192 MiB


def test_a_layers_operations_do_not_grow_with_the_texts():
    """For 224 the compiler lays norms out anew and takes the MLP's two products apart: four more."""
    found = {texts: hlo.body_operations(compiled("v6e:4x4", texts).as_text(), LAYERS) for texts in (16, 64, 224)}
    assert found[16] == found[64] <= 40 and (found[224] or 0) <= 44, found


def test_parts_of_prompts_enter_beside_the_texts():
    program = compiled("v6e:4x4", 64, tokens=512)
    (call,) = [one for one in hlo.kernel_calls(program.as_text()) if "ragged_paged_attention" in one.name]
    assert call.times == LAYERS and call.results[0][1] == (576, QWEN3_8B.num_heads // TENSOR, 128)
    assert program.memory_analysis().temp_size_in_bytes < 64 * 2**20


def test_tpus_have_pages_where_the_kernel_takes_the_model(tmp_path):
    def slots(**shape):
        model = planned.describe(tmp_path / f"model{len(list(tmp_path.iterdir()))}", **shape)
        config = planned.config(model, **{"engine.num_slots": 4, "cache.kind": "paged"})
        return Variants(config).settings(lambda **sizes: tpu_topology.mesh("v5e:2x2", **sizes)).slots

    pages = slots(num_attention_heads=4, num_key_value_heads=2, head_dim=64).pages
    assert pages and pages.kernel and pages.size == 64
    with pytest.raises(UserError, match='cache.kind "paged" does not do here'):
        slots(num_attention_heads=6, num_key_value_heads=3, head_dim=64)


def test_a_plan_counts_what_a_step_reads_of_pages(tmp_path):
    model = planned.describe(tmp_path / "model", num_attention_heads=4, num_key_value_heads=2, head_dim=128)
    small = {
        "cache.kind": "paged",
        "refine.kind": "none",
        "engine.num_slots": 0,
        "cache.gib": 0.25,
        "engine.decode_chunk": 4,
    }
    plan = planner.Planner(Variants(planned.config(model, **small)), "v5e:2x2").plan()
    found = {one.name: one for one in plan.programs}
    assert {"prefill", "decode"} < {*found} and not {"continue", "share"} & {*found}
    pages = found["decode"].hbm_bytes["kv_cache"]
    assert pages > 0 and plan.fits
    assert 4 * pages < found["decode"].cost.bytes < 8 * pages
    assert pages < found["prefill"].cost.bytes < 8 * pages


def test_layers_with_a_window_run_a_kernel_of_their_own():
    program = compiled("v6e:4x4", 64, config=GEMMA)
    calls = [one for one in hlo.kernel_calls(program.as_text()) if "ragged_paged_attention" in one.name]
    assert len(calls) == 2
    assert program.memory_analysis().temp_size_in_bytes < 2**21
