"""Meshes of the eight fake devices, and what is held alike on them."""

import functools

import jax
import numpy as np

from cgrpo_jax import sharding
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.records import LossKind, TrainRow
from cgrpo_jax.sharding import TRAINING

ONE = "1x1x1"
MESHES = {ONE: (1, 1, 1), "1x8x1": (1, 8, 1), "2x2x2": (2, 2, 2), "1x1x8": (1, 1, 8)}
ADAPTERS = lora.LoraSettings(rank=2, alpha=3.0, targets=tuple(lora.TARGETS))


@functools.cache
def make_mesh(name):
    replica, fsdp, tensor = MESHES[name]
    devices = jax.devices()[: replica * fsdp * tensor]
    return sharding.make_mesh(replica=replica, fsdp=fsdp, tensor=tensor, devices=devices)


def place(params, config, mesh, layout=TRAINING):
    axes = params_lib.axes_like(config, params)
    return jax.device_put(params, sharding.param_shardings(axes, params, mesh, layout=layout))


def rows(vocab_size=61, count=13):
    rng = np.random.default_rng(0)
    out = []
    for i in range(count):
        context, target = (rng.integers(0, vocab_size, n).astype(np.int32) for n in rng.integers((1, 2), (12, 9)))
        logp, ref = (rng.uniform(-4, -1, len(target)).astype(np.float32) for _ in range(2))
        advantage = float(rng.choice([-0.75, 0.5]))
        kind = LossKind.NLL if i % 5 == 4 else LossKind.POLICY
        fields = dict(refined=i % 4 == 3, loss=kind, ref_logp=ref, sampler_logp=logp * np.float32(1.02))
        out.append(TrainRow(context, target, logp, advantage, **fields))
    return out


def finetune_rows(vocab_size=61, count=5):
    """Returns pairs, critiques, and chats of which some targets count."""
    rng = np.random.default_rng(2)
    draw = lambda n: rng.integers(0, vocab_size, n).astype(np.int32)  # noqa: E731

    def row(context, kind, **fields):
        target = draw(rng.integers(2, 9))
        ref = rng.uniform(-4, -3, len(target)).astype(np.float32)
        fields = {"advantage": 1.0, "ref_logp": ref} | fields
        return TrainRow(context, target, np.zeros(len(target), np.float32), loss=kind, **fields)

    out = []
    for number in range(1, count + 1):
        context = draw(rng.integers(1, 6))
        out += [row(context, LossKind.DPO, pair=pair) for pair in (number, -number)]
        out.append(row(draw(5), LossKind.RCO, advantage=float(rng.normal())))
        chat = row(draw(4), LossKind.NLL)
        out.append(chat.replace(counted=np.arange(len(chat.target_ids)) % 2 == 0))
    return out


def assert_close(actual, expected, rtol):
    """Every array within `rtol` of its own largest entry."""

    def check(path, a, b):
        error, size = np.abs(np.subtract(a, b)).max(), np.abs(b).max()
        assert error <= rtol * size, (jax.tree_util.keystr(path), error, size)

    jax.tree_util.tree_map_with_path(check, actual, expected)
