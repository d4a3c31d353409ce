"""What `convert` reads and writes: whole model folders, their weights, and a run that trained adapters."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from hf_folders import random_params, stored_tensors, write_folder

from cgrpo_jax.models import lora
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import TrainState
from cgrpo_jax.runs import model_source
from cgrpo_jax.training.checkpoint import Checkpoints


def make_folder(path, settings, *, dtype=np.float32, shards=1):
    """Writes a Hugging Face folder with random weights and the arithmetic tokenizer."""
    settings = settings | {"vocab_size": 300}
    if "text_config" in settings:
        settings["text_config"] = settings["text_config"] | {"vocab_size": 300}
    write_folder(path, settings, {})
    config = hf_config.read_config(path)
    tensors = {name: tensor.astype(dtype) for name, tensor in stored_tensors(random_params(config), config).items()}
    (path / "model.safetensors").unlink()
    write_folder(path, settings | {"dtype": np.dtype(dtype).name}, tensors, shards=shards)
    for file in model_source.tokenizer_folder("arithmetic").iterdir():
        shutil.copy(file, path)
    (path / "generation_config.json").write_text('{"temperature": 0.7, "top_k": 20}')
    return path


def weights(folder):
    tensors = {}
    for file in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors |= safetensors.numpy.load_file(file)
    return tensors


def same_bits(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        np.testing.assert_array_equal(a[name].view(np.uint8), b[name].view(np.uint8), err_msg=name)


def made_up_lora_run(folder, base):
    """Writes what a run leaves that trained adapters of a Hugging Face folder; returns these too."""
    config = hf_config.read_config(base)
    settings = lora.LoraSettings(2, 4.0, ("q", "o", "down"))
    rng = np.random.default_rng(5)
    shapes = lora.adapter_shapes(config, settings)
    adapters = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(0, TrainState(step=jnp.int32(0), params=adapters, opt_state=None), {})
    tokenizer = load_tokenizer(base)
    folder_lib.write(folder / "model", config, tokenizer, source=base, tokenizer_source=base)
    trained = {
        "model": {"folder": str(base), "init": ""},
        "lora": {"rank": 2, "alpha": 4.0, "targets": ["q", "o", "down"]},
        "warm_start": {"num_updates": 0},
    }
    (folder / "config.json").write_text(json.dumps(trained))
    return adapters, settings


CRITIC = lora.LoraSettings(2, 4.0, tuple(lora.TARGETS))


def made_up_critic_run(folder, base, critic, *, weights):
    """Writes what a run leaves that trained a critic beside its policy; returns the critic's own weights, or adapters.

    Args:
      folder: of the run.
      base: Hugging Face folder of the policy, whose weights are drawn again.
      critic: that of the critic, where `weights` is `model`.
      weights: whose the critic has: `adapter`, `model`.
    """
    config, rng = hf_config.read_config(base), np.random.default_rng(7)
    policy = jax.tree.map(lambda leaf: 0.2 * leaf, random_params(config, seed=6))
    own = jax.tree.map(lambda leaf: 0.2 * leaf, random_params(hf_config.read_config(critic), seed=5))
    if weights == "adapter":
        shapes = lora.adapter_shapes(config, CRITIC)
        own = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(0, 0.2, leaf.shape), jnp.float32), shapes)
    state = TrainState(step=jnp.int32(2), params=own, opt_state=None)
    with Checkpoints(folder / "checkpoints") as checkpoints:
        checkpoints.save(1, TrainState(step=jnp.int32(1), params=policy, opt_state=None, critic=state), {})
    for name, model in (("model", base), ("critic_model", critic)):
        settings, tokenizer = hf_config.read_config(model), load_tokenizer(model)
        folder_lib.write(folder / name, settings, tokenizer, source=model, tokenizer_source=model)
    training = {"weights": weights, "rank": CRITIC.rank, "alpha": CRITIC.alpha}
    trained = {
        "model": {"folder": str(base), "init": ""},
        "critic": {"train": True, "sees": "nothing", "folder": str(critic), "training": training},
    }
    (folder / "config.json").write_text(json.dumps(trained))
    return own
