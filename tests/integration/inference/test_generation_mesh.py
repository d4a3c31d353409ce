"""Generation on larger tensor groups than training's, of the same devices: the same weights, and the same texts."""

import dataclasses

import jax
import numpy as np
import pytest
import tiny_run
from small_engine import EOS, MANY, reference, responses
from tiny import EVERYTHING, FAMILIES, random_params

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import kv_cache, weights
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import Stage

WIDE = dataclasses.replace(EVERYTHING, vocab_size=64, embed_dim=16, num_heads=8, num_kv_heads=2, mlp_dim=32)
# Nothing of it but the MLP can be cut over 4, and its embed axis over no fsdp.
ODD = dataclasses.replace(FAMILIES["smollm2"], vocab_size=61, embed_dim=18, num_heads=9, num_kv_heads=3, mlp_dim=20)


def laid_out(config, params, *, fsdp, tensor, gen_tensor, split):
    mesh = sharding.make_mesh(replica=8 // (fsdp * tensor), fsdp=fsdp, tensor=tensor)
    target = sharding.generation_mesh(mesh, gen_tensor)
    axes = params_lib.axes_like(config, params)
    trained = jax.device_put(params, sharding.param_shardings(axes, params, mesh))
    return weights.to_generation(trained, config=config, mesh=mesh, target=target, dtype="float32", split=split), target


@pytest.mark.parametrize("config", [WIDE, ODD], ids=["wide", "odd"])
@pytest.mark.parametrize("fsdp, tensor, gen_tensor", [(4, 2, 4), (4, 2, 8), (8, 1, 4), (8, 1, 8), (4, 1, 2), (2, 4, 8)])
@pytest.mark.parametrize("split", [False, True], ids=["stacked", "split"])
def test_weights_are_dealt_out_over_the_larger_groups(config, fsdp, tensor, gen_tensor, split):
    params = random_params(config)
    found, target = laid_out(config, params, fsdp=fsdp, tensor=tensor, gen_tensor=gen_tensor, split=split)
    expected = kv_cache.split_layers(params) if split else params
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    specs = weights.generation_specs(params, config=config, mesh=target, split=split)
    for leaf, spec in zip(jax.tree.leaves(found), jax.tree.leaves(specs), strict=True):
        assert leaf.sharding.is_equivalent_to(jax.sharding.NamedSharding(target, spec), leaf.ndim)
    cut = found["layers"][0]["q"] if split else found["layers"]["q"]
    if config is WIDE:
        assert cut.addressable_shards[0].data.size * gen_tensor == cut.size


@pytest.mark.parametrize("fsdp, tensor, gen_tensor", [(8, 1, 8), (8, 1, 4), (4, 2, 8), (4, 2, 4)])
def test_no_device_holds_a_weight_whole_on_the_way(fsdp, tensor, gen_tensor):
    """Also where training's tensor groups are of one device: all temporaries are less than the largest weight."""
    config = dataclasses.replace(WIDE, vocab_size=2048, embed_dim=256, num_kv_heads=8, mlp_dim=1024)
    shapes = params_lib.param_shapes(config)
    mesh = sharding.make_mesh(fsdp=fsdp, tensor=tensor)
    trained = sharding.placed(params_lib.axes_like(config, shapes), shapes, mesh)
    sizes = dict(config=config, mesh=mesh, target=sharding.generation_mesh(mesh, gen_tensor), dtype="float32")
    memory = weights.lay_out.lower(trained, None, split=False, **sizes).compile().memory_analysis()
    assert 0 < memory.temp_size_in_bytes < max(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(shapes))


def test_texts_are_the_same_on_either_mesh():
    """Of 108, one may have a near tie."""
    params, indices, found = random_params(WIDE), responses(len(MANY), 9), []
    for gen_tensor in (0, 4):
        policy, target = laid_out(WIDE, params, fsdp=4, tensor=2, gen_tensor=gen_tensor, split=True)
        assert sharding.num_groups(target) == (2 if gen_tensor else 4)
        engine = Engine(
            WIDE, eos_ids=EOS, num_slots=3, prompt_bucket=12, longest_prompt=24, length=34, chunk=4, mesh=target
        )
        found.append(engine.generate(policy, MANY, indices, seed=17, iteration=5, max_length=8))
    reference(WIDE, params).hold_alike(MANY, indices, *found)


def test_groups_that_are_none_are_refused():
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    assert sharding.generation_mesh(mesh, 0) is mesh and sharding.generation_mesh(mesh, 2) is mesh
    for size in (1, 3, 6, 16, -2):
        with pytest.raises(
            UserError, match=f"mesh.gen_tensor {size} cuts no mesh of fsdp 4 x tensor 2; use one of 2, 4, 8"
        ):
            sharding.generation_mesh(mesh, size)


def test_a_run_that_trains_writes_the_same_on_either_mesh(tmp_path):
    """A sum in another order may tip a token that is nearly undecided, and with a response all that is said of it."""
    cut = {"mesh.fsdp": 4, "mesh.tensor": 2, "engine.num_slots": 2, "data.num_eval": 0}
    runs = [tiny_run.run(tmp_path / str(n), cut | {"mesh.gen_tensor": n}, num_iterations=1) for n in (0, 4)]
    rows = [[row.rollout for row in tiny_run.rollouts(one)[0]] for one in runs]
    texts = [[row.text for row in some if row.stage == Stage.RESPONSE] for some in rows]
    assert len(texts[0]) == len(texts[1]) == 16 and np.mean([a == b for a, b in zip(*texts, strict=True)]) >= 0.9
