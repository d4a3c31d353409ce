"""Decoding from pages compiled by the real TPU compiler, at the shapes of Qwen3-8B; it has run on no TPU."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import planned
import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import slots, weights
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.paged import heads, running
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.planning import costs, hlo, planner, tpu_topology, traced_flops
from cgrpo_jax.runs.variants import Variants

LAYERS, SIZE, EACH, PAGES = 36, 64, 256, 1024
QWEN3_8B = ModelConfig(
    vocab_size=151936, num_layers=LAYERS, embed_dim=4096, mlp_dim=12288, num_heads=32, num_kv_heads=8, head_dim=128,
    qk_norm=True, tie_embeddings=False, norm_eps=1e-6, rope_theta=1e6,
)  # fmt: skip
GEMMA = dataclasses.replace(
    QWEN3_8B, local_layers=(True, False, True) * 12, window=1024, attention_softcap=50.0, num_kv_heads=4, num_heads=16
)


def traced(topology, texts, tokens=0, *, config=QWEN3_8B, tensor=4, rows=None):
    """The whole program of a call, as the engine makes it, and the bytes of a device's pool."""
    mesh = tpu_topology.mesh(topology, fsdp=0, tensor=tensor)
    pages = Pages(PAGES, SIZE, tokens=512, prompts=8, kernel=True)
    shapes = params_lib.param_shapes(config)
    params = weights.generation_shapes(shapes, config=config, mesh=mesh, dtype=jnp.bfloat16, split=False)
    engine = Engine(config, eos_ids=(1, 2), num_slots=texts, length=SIZE * EACH, mesh=mesh, pages=pages)
    settings = engine.settings(params)
    held, sizes = slots.slots_shapes(settings), running.program_sizes(settings)
    program = engine.programs(params, [Sampling()])[sizes.index((tokens, rows or texts))]
    made = program.function.trace(params, held, *program.inputs, **program.keywords)
    return made, sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(held.cache)) // mesh.size


@functools.cache
def compiled(*args, **keywords):
    made, pool = traced(*args, **keywords)
    with costs.nothing_cached():
        return made.lower().compile(), pool


def kernels(program):
    """The kernels of a step, and how often each runs."""
    return [(call.name, call.times) for call in hlo.kernel_calls(program.as_text(), unknown_trips=(1, 1))]


@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:2x2x4", "v6e:4x4"])
@pytest.mark.parametrize("tokens", [0, 32])
def test_a_call_has_two_kernels_a_layer_and_writes_the_pool_in_place(topology, tokens):
    program, pool = compiled(topology, 64, tokens)
    (ours, ours_times), (theirs, theirs_times) = sorted(kernels(program))
    assert heads.NAME in ours and "ragged_paged_attention" in theirs and ours_times == theirs_times == LAYERS
    memory = program.memory_analysis()
    assert pool == LAYERS * PAGES * SIZE * 2 * 2 * 128 * 2 <= memory.alias_size_in_bytes < 1.01 * pool
    assert memory.temp_size_in_bytes < pool / LAYERS


def test_a_layers_operations_do_not_grow_with_the_texts():
    found = {
        (texts, tensor): hlo.body_operations(compiled("v6e:4x4", texts, tensor=tensor)[0].as_text(), LAYERS)
        for texts, tensor in ((16, 4), (64, 4), (224, 4), (224, 8))
    }
    assert max(filter(None, found.values())) <= 36 and all(found.values()), found


def test_what_is_around_the_layers_of_a_step_is_counted():
    """Sampling over a cut vocabulary and the texts' bookkeeping; once a call what begins, and what is sorted."""
    program, _ = compiled("v6e:4x4", 64)
    once, twice = (hlo.operations(program.as_text(), unknown_trips=(n, n)) for n in (1, 2))
    layer = hlo.body_operations(program.as_text(), LAYERS)
    assert once and twice and layer
    assert twice - once - LAYERS * layer <= 110 and once - (twice - once) <= 140


def test_a_call_of_fewer_slots_computes_fewer():
    of = {rows: traced("v6e:4x4", 248, rows=rows)[0].jaxpr.jaxpr for rows in (62, 248)}
    few, every = (traced_flops.flops(of[rows], unknown_trips=(1,)) for rows in (62, 248))
    assert few == pytest.approx(every / 4, rel=0.01)


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
    found = kernels(compiled("v6e:4x4", 64, config=GEMMA)[0])
    assert sum("ragged_paged_attention" in name for name, _ in found) == 2
