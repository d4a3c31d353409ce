"""Model FLOPs: by hand on a small model, against what the compiler counts, and the peaks of known devices."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models import transformer
from cgrpo_jax.runtime import chips
from cgrpo_jax.training import flops

SHAPE = dict(vocab_size=10, num_layers=3, embed_dim=4, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=5)
TIED = params_lib.ModelConfig(**SHAPE)
# q and o, k and v, the MLP, two norms; and the last norm.
PARAMETERS = 3 * (2 * 4 * 24 + 2 * 4 * 12 + 3 * 4 * 5 + 2 * 4) + 4


def test_an_update_by_hand():
    found = flops.of_update(TIED, tokens=7, targets=3, pairs=20)
    assert found == 6 * PARAMETERS * 7 + 6 * 10 * 4 * 3 + 3 * 12 * 4 * 6 * 20
    untied = params_lib.ModelConfig(**SHAPE, tie_embeddings=False)
    assert flops.of_update(untied, tokens=7, targets=3, pairs=20) == found
    assert flops.of_update(TIED, tokens=0, targets=0, pairs=0) == 0


def test_adapters_spare_the_gradient_of_what_they_belong_to():
    found = flops.of_update(TIED, tokens=7, targets=3, pairs=20, adapters=True)
    assert found == 4 * PARAMETERS * 7 + 4 * 10 * 4 * 3 + 3 * 12 * 4 * 6 * 20


def test_local_layers_see_fewer_pairs():
    local = params_lib.ModelConfig(**SHAPE, local_layers=(True, False, True), window=2)
    found = flops.of_update(local, tokens=7, targets=3, pairs=20, local_pairs=9)
    assert found == 6 * PARAMETERS * 7 + 6 * 10 * 4 * 3 + 12 * 4 * 6 * (20 + 2 * 9)
    with pytest.raises(ValueError, match="2 of 3 layers are local; give local_pairs"):
        flops.of_update(local, tokens=7, targets=3, pairs=20)


@pytest.mark.parametrize("S", [24, 48])
def test_the_compiler_counts_as_much_where_all_pairs_are_computed(S):
    """One layer, so that the compiler, which counts a loop's body once, counts all; every position is a target."""
    config = params_lib.ModelConfig(
        vocab_size=192, num_layers=1, embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=256
    )
    tokens = np.arange(S, dtype=np.int32)[None]

    def loss(params):
        hidden = transformer.hidden_states(params, config, tokens, tokens, np.ones_like(tokens))
        return jnp.square(transformer.logits(params, config, hidden)).sum()

    shapes = params_lib.param_shapes(config)
    counted = jax.jit(jax.grad(loss)).lower(shapes).compile().cost_analysis()["flops"]
    # What is not a matrix product, as norms and softmax, is in the compiler's count alone.
    assert counted == pytest.approx(flops.of_update(config, tokens=S, targets=S, pairs=S * S), rel=0.08)


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", None),
        ("NVIDIA H100 80GB HBM3", 989.5e12),
        ("NVIDIA H100 PCIe", 756.5e12),
        ("NVIDIA H100 NVL", 835.5e12),
        ("NVIDIA H200", 989.5e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA H20", None),
        ("NVIDIA GeForce RTX 4090", None),
        ("TPU v3", None),
        ("cpu", None),
    ],
)
def test_peaks_of_known_devices(kind, peak):
    assert flops.peak_flops(types.SimpleNamespace(device_kind=kind)) == peak


def test_every_chip_that_can_be_planned_for_has_a_name():
    assert set(flops.TPUS.values()) == set(chips.CHIPS)


def test_utilisation():
    assert flops.mfu(8e12, 2.0, num_devices=4, peak=2e12) == 0.5
