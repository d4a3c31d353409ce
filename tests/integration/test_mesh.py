"""Eight devices against one: the same losses, gradients, log-probabilities and texts, however the mesh cuts them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from meshes import ADAPTERS, MESHES, ONE, assert_close, finetune_rows, make_mesh, place, rows
from tiny import EVERYTHING, FAMILIES, random_params

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import sampling
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.models import lora, transformer
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.logprobs import linear_logprobs
from cgrpo_jax.records import RowIndex
from cgrpo_jax.sharding import GENERATION, TENSOR, TRAINING
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import scoring
from cgrpo_jax.training import train_step as train_step_lib
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.train_step import LossSettings

MODELS = {
    # Two key/value heads: cut by a tensor axis of 2, shared by the devices of one of 8.
    "divisible": dataclasses.replace(
        EVERYTHING, vocab_size=64, embed_dim=16, num_heads=8, num_kv_heads=2, head_dim=4, mlp_dim=32
    ),
    # SmolLM2's heads, and nothing else that 8 divides.
    "indivisible": dataclasses.replace(
        FAMILIES["smollm2"], vocab_size=61, embed_dim=18, num_heads=9, num_kv_heads=3, head_dim=4, mlp_dim=20
    ),
    # Each of 8 devices has three query heads, which read one key/value head or two.
    "odd groups": dataclasses.replace(
        FAMILIES["qwen2.5"], vocab_size=64, embed_dim=16, num_heads=24, num_kv_heads=3, head_dim=4
    ),
    # The MLP can't be cut.
    "whole MLP": dataclasses.replace(
        FAMILIES["smollm2"], vocab_size=64, embed_dim=16, num_heads=8, num_kv_heads=2, head_dim=4, mlp_dim=20
    ),
    # Scaled embeddings, offset norms, norms after attention and MLP; words can't be cut.
    "gemma2": dataclasses.replace(
        FAMILIES["gemma2"], vocab_size=61, embed_dim=16, num_heads=8, num_kv_heads=2, head_dim=4, mlp_dim=32
    ),
    # Heads and MLP can be cut, words can't.
    "odd words": dataclasses.replace(
        FAMILIES["smollm2"], vocab_size=61, embed_dim=16, num_heads=8, num_kv_heads=2, head_dim=4, mlp_dim=32
    ),
}
SETTINGS = LossSettings(
    max_length=8, temperature=0.8, kl_coef=0.3, entropy_coef=0.2, num_responses=3, num_refinements=1
)
SHAPE = PackShape(num_token_rows=1, pack_length=24, num_slots=3)
cases = pytest.mark.parametrize(
    "name, mesh",
    [
        *(("divisible", mesh) for mesh in MESHES if mesh != ONE),
        ("indivisible", "2x2x2"),
        ("indivisible", "1x1x8"),
        ("odd groups", "1x1x8"),
        ("odd words", "2x2x2"),
        ("whole MLP", "1x1x8"),
        ("gemma2", "2x2x2"),
    ],
)


@functools.cache
def params(name):
    return random_params(MODELS[name])


@functools.cache
def adapters(name):
    rng = np.random.default_rng(1)
    shapes = lora.adapter_shapes(MODELS[name], ADAPTERS)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes)


def gradient(name, mesh, *, remat="none", adapted=False, shape=SHAPE, settings=SETTINGS):
    """The gradient, whole and on the host, and the statistics."""
    config = MODELS[name]
    weights, base = place(params(name), config, mesh), None
    if adapted:
        weights, base = place(adapters(name), config, mesh), lora.Base(weights, ADAPTERS.scale)
    grads, stats = train_step_lib.accumulate_gradients(
        weights, rows(), config=config, settings=settings, shape=shape, remat=remat, base=base, mesh=mesh
    )
    where = jax.tree.map(lambda g, w: g.sharding.is_equivalent_to(w.sharding, w.ndim), grads, weights)
    assert jax.tree.all(where)
    return jax.device_get(grads), stats


@functools.cache
def gradient_of_one_device(name, adapted=False):
    return gradient(name, make_mesh(ONE), adapted=adapted)


@cases
def test_losses_and_gradients(name, mesh):
    expected, expected_stats = gradient_of_one_device(name)
    actual, stats = gradient(name, make_mesh(mesh))
    assert_close(actual, expected, 1e-5)
    # How much is padding depends on how many data groups there are.
    assert_close(stats | {"packed_positions": 0}, expected_stats | {"packed_positions": 0}, 1e-5)
    assert stats["policy_loss"] and stats["nll_loss"] and stats["kl_sum"] and stats["refined/tokens"]


@pytest.mark.parametrize(
    "values",
    [
        dict(initial_ratio="sequence", refined_ratio="importance", kl="k2", tis_cap=1.05),
        dict(initial_ratio="cispo", refined_ratio="logp", kl="k1", tis_cap=1.2, tis_level="sequence_mask"),
    ],
    ids=["sequence", "cispo"],
)
def test_other_ratios_are_the_same_on_eight_devices(values):
    """A ratio of a whole response is of one data group's row, its weight as well."""
    settings = dataclasses.replace(SETTINGS, **values)
    shape = dataclasses.replace(SHAPE, sampler_logp=True)
    expected, _ = gradient("divisible", make_mesh(ONE), shape=shape, settings=settings)
    actual, stats = gradient("divisible", make_mesh("2x2x2"), shape=shape, settings=settings)
    assert_close(actual, expected, 1e-5)
    assert stats["initial/tokens"] and stats["refined/tokens"]


@pytest.mark.parametrize("mesh", ["2x2x2", "1x8x1"])
def test_a_minibatch_without_rows(mesh):
    """As where all groups are all right or all wrong. A token row is less than the data groups can share."""
    mesh, config = make_mesh(mesh), MODELS["divisible"]
    weights = place(params("divisible"), config, mesh)
    grads, stats = train_step_lib.accumulate_gradients(
        weights, [], config=config, settings=SETTINGS, shape=SHAPE, mesh=mesh
    )
    assert set(stats.values()) == {0.0} and stats.keys() == gradient_of_one_device("divisible")[1].keys()
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.device_get(grads)))


@pytest.mark.parametrize("remat", ["layer", "mlp"])
def test_rematerialisation(remat):
    expected, _ = gradient_of_one_device("divisible")
    assert_close(gradient("divisible", make_mesh("2x2x2"), remat=remat)[0], expected, 1e-5)


@pytest.mark.parametrize(
    "mesh, num_token_rows, pack_length",
    [
        ("1x1x8", 1, 25),  # which the tensor axis does not divide
        ("1x1x8", 3, 24),  # shares of 9 tokens, some of two rows
        ("2x2x2", 3, 24),  # a row and a half
        ("2x2x2", 4, 24),  # two rows
    ],
)
def test_shares_of_tokens_need_not_be_token_rows(mesh, num_token_rows, pack_length):
    expected, _ = gradient_of_one_device("divisible")
    shape = PackShape(num_token_rows, pack_length, num_slots=3 * num_token_rows)
    assert_close(gradient("divisible", make_mesh(mesh), shape=shape)[0], expected, 1e-5)


@pytest.mark.parametrize(
    "name, mesh, shape, share",
    [
        ("divisible", ONE, (4, 24), (4, 24)),
        ("divisible", "2x2x2", (4, 24), (1, 12)),
        ("divisible", "2x2x2", (8, 24), (1, 24)),
        ("divisible", "2x2x2", (4, 25), (1, 25)),
        ("odd words", "1x1x8", (2, 12), (1, 3)),
        ("indivisible", "2x2x2", (4, 24), (1, 24)),  # no device has a part of its attention
        ("whole MLP", "1x1x8", (2, 12), (2, 12)),
    ],
    ids=str,
)
def test_between_products_a_device_has_its_share_of_the_tokens(monkeypatch, name, mesh, shape, share):
    config, mesh, seen = MODELS[name], make_mesh(mesh), []
    specs = sharding.param_specs(params_lib.axes_like(config, params(name)), params(name), mesh)
    apply_layer = transformer.apply_layer

    def watched(config, p, x_BSD, *args):
        out_BSD, aux = apply_layer(config, p, x_BSD, *args)
        seen.extend([x_BSD.shape, out_BSD.shape])
        return out_BSD, aux

    def hidden(params, tokens_BS):
        return transformer.hidden_states(params, config, tokens_BS, tokens_BS, tokens_BS)

    monkeypatch.setattr(transformer, "apply_layer", watched)
    rows = sharding.BY_ROWS
    program = jax.shard_map(hidden, mesh=mesh, in_specs=(specs, rows), out_specs=rows)
    out = jax.eval_shape(program, params(name), jnp.ones(shape, jnp.int32))
    assert set(seen) == {(*share, config.embed_dim)} and out.shape == (*shape, config.embed_dim)


@pytest.mark.parametrize("name, mesh", [("divisible", "2x2x2"), ("odd groups", "1x1x8"), ("gemma2", "2x2x2")])
def test_gradients_of_adapters(name, mesh):
    expected, _ = gradient_of_one_device(name, True)
    assert_close(gradient(name, make_mesh(mesh), adapted=True)[0], expected, 1e-5)


def test_two_updates():
    """The optimiser's state lies as the weights do, and stays there."""
    config, mesh = MODELS["divisible"], make_mesh("2x2x2")
    optimizer = optimizer_lib.make_optimizer(learning_rate=1e-2, weight_decay=0.1, max_grad_norm=0.5)
    settings = dict(optimizer=optimizer, config=config, settings=SETTINGS, shape=SHAPE)
    states = {}
    for key in (make_mesh(ONE), mesh):
        states[key] = optimizer_lib.init_state(
            place(jax.tree.map(jnp.copy, params("divisible")), config, key), optimizer
        )
        lies = optimizer_lib.state_shapes(states[key].params, optimizer)
        for _ in range(2):
            states[key], _ = train_step_lib.update(states[key], rows(), mesh=key, **settings)
        same = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s.sharding, x.ndim), states[key], lies)
        assert jax.tree.all(same)
    one, eight = (jax.device_get(state.params) for state in states.values())
    assert_close(eight, one, 1e-4)  # Adam divides by the root of tiny second moments
    moment = optax.tree.get(states[mesh].opt_state, "mu")["layers"]["gate"]
    assert {shard.data.shape for shard in moment.addressable_shards} == {(2, 8, 16)}


@pytest.mark.parametrize(
    "name, mesh, layout",
    [
        ("divisible", "1x8x1", TRAINING),
        ("divisible", "2x2x2", TRAINING),
        ("divisible", "2x2x2", GENERATION),
        ("indivisible", "2x2x2", GENERATION),
        ("odd groups", "1x1x8", GENERATION),
    ],
    ids=str,
)
def test_log_probabilities_of_policy_and_reference(name, mesh, layout):
    """The trainer scores the policy in the layout of training, and the reference in that of generation."""
    config = MODELS[name]

    def score(mesh):
        weights = place(params(name), config, mesh, layout)
        options = dict(config=config, shape=SHAPE, max_length=8, temperature=0.8)
        return scoring.score_rows(weights, rows(), mesh=mesh, layout=layout, **options)

    for actual, expected in zip(score(make_mesh(mesh)), score(make_mesh(ONE)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


PROMPTS = [np.random.default_rng(i).integers(0, 61, n).astype(np.int32) for i, n in enumerate((1, 5, 16, 9, 3))]


@functools.cache
def sampled(name, mesh, pages=None, **sampling):
    config = MODELS[name]
    weights = place(params(name), config, make_mesh(mesh), GENERATION)
    keywords = dict(longest_prompt=16, length=32, prompt_bucket=16)
    engine = Engine(config, eos_ids=(0, 7, 19), num_slots=3, chunk=4, mesh=make_mesh(mesh), pages=pages, **keywords)
    indices = [[RowIndex(question=q, response=n) for n in range(3)] for q in range(len(PROMPTS))]
    return engine.generate(weights, PROMPTS, indices, seed=3, iteration=5, max_length=10, **sampling)


@cases
def test_texts_of_policy_and_critic(name, mesh):
    assert_same_texts(sampled(name, mesh), sampled(name, ONE))


@pytest.mark.parametrize("how", [{"temperature": 0.0}, {"top_k": 5, "temperature": 2.0, "top_p": 0.8}], ids=str)
def test_texts_however_they_are_drawn(how):
    assert_same_texts(sampled("divisible", "2x2x2", **how), sampled("divisible", ONE, **how))


@pytest.mark.parametrize(
    "name, mesh", [("divisible", ONE), ("divisible", "2x2x2"), ("odd groups", "1x1x8"), ("gemma2", "2x2x2")]
)
def test_texts_with_pages(name, mesh):
    """Pages of 4 for a text and a half in each data group, and 12 tokens of prompts in a step."""
    pages = Pages(13, 4, tokens=12, prompts=2, kernel=False)
    assert_same_texts(sampled(name, mesh, pages), sampled(name, ONE))


def assert_same_texts(groups, expected):
    for row, one in zip(sum(groups, []), sum(expected, []), strict=True):
        assert row.token_ids.tolist() == one.token_ids.tolist() and row.truncated == one.truncated
        np.testing.assert_allclose(row.logp, one.logp, rtol=1e-5, atol=1e-5)


# --- the vocabulary, cut ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("softcap", [0.0, 2.0])
def test_blocks_within_a_part_of_the_vocabulary(softcap):
    rng = np.random.default_rng(0)
    table, hidden = (jnp.asarray(rng.normal(0, 1, shape), jnp.float32) for shape in ((80, 6), (9, 6)))
    target, weights = jnp.asarray(rng.integers(0, 80, 9)), jnp.asarray(rng.normal(0, 1, (2, 9)), jnp.float32)

    def total(table, hidden, vocab_size):
        out = linear_logprobs(
            hidden, table, target, temperature=0.7, softcap=softcap, block_size=4, vocab_size=vocab_size
        )
        return jnp.vdot(weights, jnp.stack(out))

    whole = jax.value_and_grad(total, (0, 1))(table, hidden, None)

    mesh = make_mesh("1x1x8")
    spec, out = jax.sharding.PartitionSpec(TENSOR), jax.sharding.PartitionSpec()
    function = jax.shard_map(
        lambda table, hidden: jax.value_and_grad(total, (0, 1))(table, hidden, 80),
        mesh=mesh,
        in_specs=(spec, out),
        out_specs=(out, (spec, out)),
    )
    assert_close(jax.jit(function)(table, hidden), whole, 1e-5)


@pytest.mark.parametrize("size", [40, 1608])
@pytest.mark.parametrize("how", [{}, {"top_p": 0.9}, {"top_k": 7}, {"temperature": 0.0}], ids=str)
def test_draws_from_a_part_of_the_vocabulary(how, size):
    """Parts without mass, ties across parts, parts that begin within a block and hold the ends of two."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, (512, size)).astype(np.float32)
    logits[:8, : size // 2] = -np.inf
    logits[8:16, -5:] = -np.inf
    logits[16:24] = np.round(logits[16:24])
    keys = jax.random.split(jax.random.key(0), len(logits))
    sample = functools.partial(sampling.sample, **how)
    spec, whole = jax.sharding.PartitionSpec(None, TENSOR), sharding.WHOLE
    cut = jax.shard_map(
        functools.partial(sample, vocab_size=size), mesh=make_mesh("1x1x8"), in_specs=(spec, whole), out_specs=whole
    )
    (token, logp), (expected, expected_logp) = jax.jit(cut)(logits, keys), jax.jit(sample)(logits, keys)
    np.testing.assert_array_equal(token, expected)
    np.testing.assert_allclose(logp, expected_logp, rtol=1e-5, atol=1e-5)
    assert np.isfinite(np.take_along_axis(logits, np.asarray(token)[:, None], 1)).all()
    assert len(np.unique(np.asarray(token) * 8 // size)) > 4  # on most devices


# --- the table ----------------------------------------------------------------------------------------------------


def test_what_the_two_layouts_cut():
    config, mesh = MODELS["divisible"], make_mesh("2x2x2")
    shapes = params_lib.param_shapes(config)
    axes = params_lib.axes_like(config, shapes)
    training, generation = (
        sharding.param_specs(axes, shapes, mesh, layout=x)["layers"] for x in (TRAINING, GENERATION)
    )
    assert training["q"] == jax.sharding.PartitionSpec(None, "fsdp", "tensor")
    assert generation["q"] == jax.sharding.PartitionSpec(None, None, "tensor")
    assert training["down"] == jax.sharding.PartitionSpec(None, "tensor", "fsdp")
    assert training["attn_norm"] == generation["attn_norm"] == jax.sharding.PartitionSpec()


@pytest.mark.parametrize(
    "sizes, message",
    [
        ((3, 0, 1), "replica 3 x fsdp 2 x tensor 1 takes 6 devices, there are 8; change mesh.replica"),
        ((1, 8, 2), "takes 16 devices, there are 8"),
        ((0, 1, 1), "mesh.replica 0 is no size"),
        ((1, -1, 1), "mesh.fsdp -1 is no size"),
    ],
)
def test_a_mesh_that_does_not_take_the_devices(sizes, message):
    replica, fsdp, tensor = sizes
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(replica=replica, fsdp=fsdp, tensor=tensor)


def test_devices_without_coordinates_keep_their_order():
    mesh = sharding.make_mesh(replica=2, fsdp=2, tensor=2)
    assert mesh.axis_names == ("replica", "fsdp", "tensor")
    assert list(mesh.devices.flat) == jax.devices()


@pytest.mark.parametrize("mesh", [mesh for mesh in MESHES if mesh != ONE])
def test_losses_of_rows_are_the_same_on_eight_devices(mesh):
    """Pairs, critiques and chats, dealt out to data groups: each pair lies in one of them."""
    some = finetune_rows(MODELS["divisible"].vocab_size)
    shape = dataclasses.replace(SHAPE, num_slots=4, from_rows=True)

    def gradients(name):
        where = make_mesh(name)
        placed = place(params("divisible"), MODELS["divisible"], where)
        return train_step_lib.accumulate_gradients(
            placed, some, config=MODELS["divisible"], settings=LossSettings(max_length=8), shape=shape, mesh=where
        )

    (expected, stats), (found, ours) = gradients(ONE), gradients(mesh)
    assert_close(found, expected, rtol=2e-4)
    for name in ("nll_loss", "rco_loss", "dpo_loss", "rewards/accuracies_sum", "rco/residual_sum"):
        assert ours[name] == pytest.approx(stats[name], rel=1e-4)
