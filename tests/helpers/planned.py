"""A small model and configuration to plan for, and slices of fake devices that need no compiler."""

import dataclasses
import json
import math

import jax
import paths

from cgrpo_jax import sharding
from cgrpo_jax.inference import weights
from cgrpo_jax.planning import costs, tpu_topology
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runtime import chips

BASE = paths.CONFIGS / "base.py"
NAME = "v5e:2x2"


def describe(folder, **sizes) -> str:
    """Writes a model folder that holds its config.json alone, and returns its name."""
    content = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": 96,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content | sizes))
    return str(folder)


def changes(model: str, **more) -> dict:
    """Returns the flat changes that make the defaults a small run of the model."""
    small = {
        "model.folder": model,
        "mesh.fsdp": 2,
        "mesh.tensor": 2,
        "compute.dtype": "bfloat16",
        "questions_per_iteration": 8,
        "num_responses": 3,
        "engine.num_slots": 8,
        "max_prompt_length": 40,
        "max_response_length": 16,
        "critic.max_length": 12,
        "critic.max_prompt_length": 60,
        "refine.max_prompt_length": 100,
        "engine.prompt_bucket": 16,
        "packing.rows": 2,
    }
    return small | more


def config(model: str, /, **more):
    c = config_lib.load(BASE)
    c.update_from_flattened_dict(changes(model, **more))
    return config_lib.freeze(c)


def arguments(model: str, /, **more) -> list[str]:
    return [f"--config={BASE}", *(f"--config.{key}={value}" for key, value in changes(model, **more).items())]


def size(tree) -> int:
    """Returns the bytes of arrays on one device."""
    leaves = [leaf for leaf in jax.tree.leaves(tree) if hasattr(leaf, "dtype")]
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves)


def compiled(args, *, limit: int) -> costs.Compiled:
    """Returns what a compiler might report: a program needs twice its arguments, and a FLOP for each of their bytes.

    The bytes it moves to and from HBM, where these are counted, are 10 times those.
    """
    needed, cost = 2 * size(args), costs.Cost(size(args), 10.0 * size(args), {"all-gather": 1.0})
    if needed > limit:
        return costs.Compiled(needed, limit, None, None, (), (), 0.0, "RESOURCE_EXHAUSTED")
    memory = costs.Memory(size(args), 0, 0, size(args), 0, needed)
    return costs.Compiled(needed, None, memory, cost, (), (), 0.0, "", 10 * size(args))


def pretend(monkeypatch, *, hbm_bytes: int = 2**30, count: int = 4) -> None:
    """Makes every topology one of so many CPU devices of that size, and the compiler `compiled`.

    The weights that generate are stacked, as on the devices that these stand for.
    """
    chip = dataclasses.replace(chips.CHIPS["v5e"], hbm_bytes=hbm_bytes)
    parse, devices = tpu_topology.parse, jax.devices()[:count]
    monkeypatch.setattr(tpu_topology, "parse", lambda name: (chip, parse(name)[1]))
    monkeypatch.setattr(tpu_topology, "devices", lambda name: devices)
    monkeypatch.setattr(tpu_topology, "mesh", lambda name, **sizes: sharding.make_mesh(**sizes, devices=devices))
    monkeypatch.setattr(weights, "splits", lambda mesh: False)
    monkeypatch.setattr(costs, "compile_for", lambda function, args, *_, **__: compiled(args, limit=hbm_bytes))
