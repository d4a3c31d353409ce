"""What takes longer than a unit test may, of tests/models/test_attention.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attention_cases import config_of
from jax.sharding import PartitionSpec as P

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import attention
from cgrpo_jax.models.kernels import splash_attention

WINDOW = 20
# Rows as (tokens, segment, prompt): prompts with several responses, with one, with none, ones that end a block of 256
# queries or 128 keys, and padding.
SHARED = [
    [(100, 1, 0), (30, 2, 1), (250, 3, 1), (4, 4, 1), (20, 5, 0), (10, 6, 0), (60, 7, 6), (1, 8, 6), (125, 0, 0)],
    [(256, 9, 0), (128, 2, 9), (1, 5, 0), (1, 3, 5), (214, 4, 5)],
    [(3, 1, 0), (2, 2, 1), (5, 3, 1), (590, 0, 0)],
]
ALONE = [[(130, 1, 0), (300, 2, 0), (170, 3, 0)], [(600, 1, 0)], [(1, 1, 0), (250, 2, 0), (349, 0, 0)]]


def packed(rows):
    """Returns positions, segments and prompts; a response's positions continue its prompt's."""
    segments, prompts, positions = [], [], []
    for row in rows:
        length = {segment: tokens for tokens, segment, _ in row} | {0: 0}
        segments.append(np.concatenate([np.full(n, segment) for n, segment, _ in row]))
        prompts.append(np.concatenate([np.full(n, prompt) for n, _, prompt in row]))
        positions.append(np.concatenate([(length[prompt] if prompt else 0) + np.arange(n) for n, _, prompt in row]))
    return [np.stack(x).astype(np.int32) for x in (positions, segments, prompts)]


def visible(positions, segments, prompts, window):
    B, S = segments.shape
    seen = np.zeros((B, S, S), bool)
    positions, segments, prompts = (x.tolist() for x in (positions, segments, prompts))
    for b in range(B):
        for i in range(S):
            for j in range(i + 1):
                own = segments[b][j] == segments[b][i]
                shared = prompts[b][i] > 0 and segments[b][j] == prompts[b][i]
                near = window is None or positions[b][i] - positions[b][j] < window
                seen[b, i, j] = (own or shared) and near
    return seen


def defined(q, k, v, weight, seen, scale, cap):
    """Returns attention and the gradients of `sum(weight * attention)`, in float64."""
    group = q.shape[2] // k.shape[2]
    q, k, v, weight = (np.asarray(x, np.float64).transpose(0, 2, 1, 3) for x in (q, k, v, weight))
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    score = scale * np.einsum("bhsk,bhtk->bhst", q, k)
    capped = cap * np.tanh(score / cap) if cap else score
    p = np.exp(np.where(seen[:, None], capped, -np.inf) - capped.max())
    p /= p.sum(-1, keepdims=True)
    out = np.einsum("bhst,bhtk->bhsk", p, v)
    dp = np.einsum("bhsk,bhtk->bhst", weight, v)
    ds = p * (dp - (p * dp).sum(-1, keepdims=True))
    ds *= scale * (1 - (capped / cap) ** 2 if cap else 1)
    dq, dk, dv = ds @ k, np.swapaxes(ds, 2, 3) @ q, np.swapaxes(p, 2, 3) @ weight
    dk, dv = (x.reshape(len(x), -1, group, *x.shape[2:]).sum(2) for x in (dk, dv))
    return [x.transpose(0, 2, 1, 3) for x in (out, dq, dk, dv)]


def drawn(B, S, H, G, K, dtype=np.float32):
    draw = np.random.default_rng(0).normal
    return [draw(size=size).astype(dtype) for size in ((B, S, H, K), (B, S, G, K), (B, S, G, K), (B, S, H, K))]


def computed(config, rows, arrays, *, kernel, local=None, share=True):
    """Returns attention and its gradients."""
    positions, segments, prompts = packed(rows)

    @jax.jit
    def both(q, k, v, weight):
        of_layer = attention.packed_attention(config, positions, segments, prompts if share else None, kernel=kernel)
        attend = of_layer(None if local is None else jnp.asarray(local))
        out, pull_back = jax.vjp(lambda q, k, v: attend(q, k, v)[0], q, k, v)
        return [out, *pull_back(weight)]

    return both(*arrays)


@functools.cache
def seen_by(share, window=None):
    return visible(*packed(SHARED if share else ALONE), window)


def check(config, arrays, found, seen, tolerance):
    want = defined(*arrays, seen, attention.query_scale(config), config.attention_softcap)
    for name, a, b in zip(("out", "dq", "dk", "dv"), found, want, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), b, atol=tolerance, rtol=tolerance, err_msg=name)


CASES = {
    "grouped heads": {"heads": (4, 2, 64)},
    "one key head, narrow, soft-cap, own scale": {"heads": (3, 1, 16), "attention_softcap": 2.0, "query_scale": 0.5},
    "a key head each, wide": {"heads": (2, 2, 256)},
}


@pytest.mark.parametrize("kernel", ["blocks", "interpret"])
@pytest.mark.parametrize("case", CASES)
def test_responses_see_their_prompt_and_themselves(monkeypatch, kernel, case):
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 256)
    more = dict(CASES[case])
    config = config_of(*more.pop("heads"), **more)
    arrays = drawn(3, 600, config.num_heads, config.num_kv_heads, config.head_dim)
    check(config, arrays, computed(config, SHARED, arrays, kernel=kernel), seen_by(True), 2e-5)


@pytest.mark.parametrize("kernel", ["blocks", "interpret"])
def test_segments_without_prompts_see_themselves(monkeypatch, kernel):
    monkeypatch.setattr(attention, "_QUERY_BLOCK", 256)
    config = config_of(2, 1, 16)
    arrays = drawn(3, 600, 2, 1, 16)
    check(config, arrays, computed(config, ALONE, arrays, kernel=kernel, share=False), seen_by(False), 2e-5)


@pytest.mark.parametrize("kernel", ["blocks", "interpret"])
def test_in_bfloat16(kernel):
    config = config_of(2, 1, 64)
    arrays = [x.astype(jnp.bfloat16) for x in drawn(3, 600, 2, 1, 64)]
    found = computed(config, SHARED, arrays, kernel=kernel)
    assert {x.dtype for x in found} == {jnp.dtype(jnp.bfloat16)}
    # Gradients of keys add up those of all queries, of about 10.
    check(config, arrays, found, seen_by(True), 0.1)


@pytest.mark.parametrize("kernel", ["blocks", "splash"])
@pytest.mark.parametrize("local", [True, False])
def test_local_layers_see_the_last_tokens_in_plain_jax(kernel, local):
    """Asked for splash, which this machine could not run, a model with local layers takes the other path."""
    config = config_of(2, 1, 16, local_layers=(True, False), window=WINDOW)
    arrays = drawn(3, 600, 2, 1, 16)
    found = computed(config, SHARED, arrays, kernel=kernel, local=local)
    check(config, arrays, found, seen_by(True, WINDOW if local else None), 2e-5)


def test_rows_too_long_for_the_kernel_take_plain_jax():
    config = config_of(2, 1, 16)

    def program(length, kernel):
        row, x = np.ones((1, length), np.int32), jax.ShapeDtypeStruct((1, length, 2, 16), jnp.float32)
        attend = attention.packed_attention(config, row, row, kernel=kernel)(None)
        return str(
            jax.make_jaxpr(lambda q, k: attend(q, k, k)[0])(x, jax.ShapeDtypeStruct((1, length, 1, 16), x.dtype))
        )

    assert "pallas_call" in program(splash_attention.LONGEST, "interpret")
    assert "pallas_call" not in program(splash_attention.LONGEST + 1, "interpret")
    with pytest.raises(UserError, match="rows of at most 16384 tokens, not 16385; use shorter rows"):
        splash_attention.block_sizes(splash_attention.LONGEST + 1, 64)


def test_blocks_without_visible_keys_are_not_computed():
    """As the masks say that the kernel reads, of blocks of 256 queries and 128 keys."""
    plan = splash_attention._Plan(768, 256, 128, 0.0, True)
    # Prompt 1 fills two blocks of keys, its responses two and one, padding one.
    _, segments, prompts = packed([[(256, 1, 0), (256, 2, 1), (128, 3, 1), (128, 0, 0)]])
    sees = splash_attention._masks(plan, jnp.asarray(segments), jnp.asarray(prompts))["sees"][0]
    np.testing.assert_array_equal(sees, [[1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 1, 1]])
    # What is fetched next: the block itself where it is computed, else the one that is computed after it.
    np.testing.assert_array_equal(
        splash_attention._next_seen(sees, 1), [[0, 1, 0, 0, 0, 0], [0, 1, 2, 3, 0, 0], [0, 1, 4, 4, 4, 5]]
    )
    np.testing.assert_array_equal(
        splash_attention._next_seen(sees, 0), [[0, 0, 1, 1, 2, 2], [1, 1, 1, 1, 2, 2], [2, 2, 1, 1, 2, 2]]
    )


def test_inside_a_checked_shard_map():
    """Scanned layers, recomputed in the backward pass, on a mesh; keys of a weight that all devices hold whole."""
    config = config_of(4, 2, 16)
    mesh = sharding.make_mesh(replica=2, fsdp=2, tensor=2)
    rows = [[(90, 1, 0), (40, 2, 1), (70, 3, 1), (20, 0, 0)], [(10, 1, 0), (210, 2, 0)]] * 2
    positions, segments, prompts = packed(rows)
    draw = np.random.default_rng(1).normal
    x = draw(size=(4, 220, 32)).astype(np.float32)
    weights = {
        name: draw(size=(3, 32, heads, 16)).astype(np.float32) / 6 for name, heads in zip("qkv", (4, 2, 2), strict=True)
    }

    def loss(weights, x, positions, segments, prompts, kernel, add_up):
        attend = attention.packed_attention(config, positions, segments, prompts, kernel=kernel)(None)

        def layer(x, w):
            out, _ = attend(*(jnp.einsum("bsd,dhk->bshk", x, w[name]) for name in "qkv"))
            return x + add_up(jnp.einsum("bshk,dhk->bsd", out, w["q"])), None

        layer = jax.checkpoint(layer, prevent_cse=False)
        return (jax.lax.scan(layer, x, weights)[0] ** 2).mean()

    # Query heads are cut over tensor, as are the keys' and values'.
    specs = {name: P(None, None, "tensor") for name in "qkv"}
    data = (positions, segments, prompts)

    def part(weights, x, *data):
        add_up = functools.partial(jax.lax.psum, axis_name="tensor")
        value, grads = jax.value_and_grad(loss)(weights, x, *data, "interpret", add_up)
        return jax.lax.pmean(value, sharding.DATA), grads

    cut = jax.shard_map(part, mesh=mesh, in_specs=(specs, *[sharding.BY_ROWS] * 4), out_specs=(P(), specs))
    value, grads = jax.jit(cut)(weights, x, *data)
    whole = functools.partial(loss, kernel="blocks", add_up=lambda x: x)
    want_value, want_grads = jax.jit(jax.value_and_grad(whole))(weights, x, *data)
    np.testing.assert_allclose(value, want_value, rtol=1e-5)
    for name in "qkv":  # each of 4 data groups gives the gradient of its own mean
        np.testing.assert_allclose(grads[name] / 4, want_grads[name], atol=1e-6, rtol=1e-4)


def test_gradients_of_what_devices_share_are_added_up():
    """Keys and values that are whole on both devices of tensor, which have query heads of their own."""
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    config = config_of(4, 1, 16)
    _, segments, prompts = packed(SHARED[:1] * 4)
    q, k, v, weight = drawn(4, 600, 4, 1, 16)

    def gradients(q, k, v, weight, segments, prompts, kernel="interpret"):
        attend = attention.packed_attention(config, segments, segments, prompts, kernel=kernel)(None)
        return jax.grad(lambda *qkv: (attend(*qkv)[0] * weight).sum(), argnums=(0, 1, 2))(q, k, v)

    rows, heads = P(sharding.DATA), P(sharding.DATA, None, "tensor")
    specs = (heads, rows, rows, heads, rows, rows)
    cut = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs[:3]))
    want = jax.jit(functools.partial(gradients, kernel="blocks"))(q, k, v, weight, segments, prompts)
    for found, other in zip(cut(q, k, v, weight, segments, prompts), want, strict=True):
        np.testing.assert_allclose(found, other, atol=2e-5)
