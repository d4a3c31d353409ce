"""What the tests of models/test_lora share with those that take longer."""

import functools

import jax
import numpy as np
import optax
from adapters import CONFIG
from tiny import random_params

from cgrpo_jax.models.lora import LoraSettings
from cgrpo_jax.records import TrainRow
from cgrpo_jax.training import packing
from cgrpo_jax.training import train_step as train_step_lib

SOME = LoraSettings(rank=2, alpha=5.0, targets=("q", "down"))
# A B of every target, written out.
PRODUCT = dict.fromkeys("qkv", "ldr,lrhk->ldhk") | {"o": "lhkr,lrd->lhkd"}
PRODUCT |= {"gate": "ldr,lrf->ldf", "up": "ldr,lrf->ldf", "down": "lfr,lrd->lfd"}


@functools.cache
def params():
    return random_params(CONFIG)


def merged_by_hand(weights, adapters, scale):
    layers = dict(weights["layers"])
    for name, spec in PRODUCT.items():
        if f"{name}_lora_a" in adapters["layers"]:
            pair = (np.asarray(adapters["layers"][f"{name}_lora_{x}"], np.float64) for x in "ab")
            layers[name] = np.asarray(layers[name], np.float64) + scale * np.einsum(spec, *pair)
    return weights | {"layers": layers}


def assert_trees_close(actual, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), actual, expected)


def assert_trees_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


SHAPE = packing.PackShape(num_token_rows=2, pack_length=24, num_slots=5)
MODEL = dict(config=CONFIG, shape=SHAPE, settings=train_step_lib.LossSettings(max_length=8, kl_coef=0.1))


def rows(count=5, seed=0, **fields):
    rng = np.random.default_rng(seed)

    def ids(longest):
        return rng.integers(0, CONFIG.vocab_size, rng.integers(1, longest)).astype(np.int32)

    def one(i):
        target = ids(9)
        old, ref = (rng.uniform(-6, -1, target.size).astype(np.float32) for _ in range(2))
        given = dict(advantage=(0.5, -0.75)[i % 2], old_logp=old, ref_logp=ref, refined=i % 3 == 0) | fields
        return TrainRow(context_ids=ids(12), target_ids=target, **given)

    return [one(i) for i in range(count)]


SGD = optax.sgd(1.0)  # the step is the gradient
