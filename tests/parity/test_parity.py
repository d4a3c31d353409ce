"""The same weights in `transformers` and here: logits, continuations, and folders that go through `convert` and back.

Needs the extra `parity`. With CGRPO_SMOLLM2 naming a SmolLM2-135M-Instruct folder, real weights are compared too.
"""

import json
import os
import pathlib
import shutil

import converted
import hf_folders
import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import safetensors.numpy
import tiny_run
import torch
import transformers

from cgrpo_jax import convert
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.models import transformer
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import RowIndex
from cgrpo_jax.runs import model_source

SMALL = {
    "vocab_size": 211,  # more than the quickstart's tokenizer has
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,  # large enough for attention to be far from uniform
    "pad_token_id": 0,
    "eos_token_id": 3,
}
LLAMA3_ROPE = {
    "rope_theta": 10000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
GEMMA3 = {"sliding_window": 8, "query_pre_attn_scalar": 10, "rope_parameters": GEMMA3_ROPE}
GEMMA3 |= {"layer_types": ["sliding_attention", "sliding_attention", "full_attention"]}
SMOLLM2_HEADS = {"hidden_size": 36, "num_attention_heads": 9, "num_key_value_heads": 3, "head_dim": 4}
# transformers' kind of model, and what its configuration has beyond SMALL. Prompts are longer than any window.
MODELS = {
    "llama-2": ("llama", {"tie_word_embeddings": False}),
    "llama-3": ("llama", {"tie_word_embeddings": False, "rope_parameters": LLAMA3_ROPE}),
    "smollm2": ("llama", SMOLLM2_HEADS | {"tie_word_embeddings": True}),
    "mistral": ("mistral", {"sliding_window": None}),
    "mistral, windows": ("mistral", {"sliding_window": 8}),
    "qwen2.5, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2.5, untied": ("qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("qwen3", {"tie_word_embeddings": True}),
    "gemma2": ("gemma2", {"sliding_window": 8, "query_pre_attn_scalar": 10}),
    "gemma3": ("gemma3_text", GEMMA3),
    "gemma3, multimodal": ("gemma3", GEMMA3),
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def random_model(name):
    torch.manual_seed(0)
    kind, settings = MODELS[name]
    if kind == "gemma3":
        text = transformers.Gemma3TextConfig(**SMALL, **settings)
        config = transformers.Gemma3Config(text_config=text, vision_config=VISION, image_token_index=90)
        config.eos_token_id, config.pad_token_id = 3, 0
        net = transformers.AutoModelForImageTextToText.from_config(config, attn_implementation="eager")
    else:
        config = transformers.AutoConfig.for_model(kind, **SMALL | settings)
        net = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for tensor_name, tensor in net.named_parameters():
            if "norm" in tensor_name or "bias" in tensor_name:  # initialised alike, which would hide a mix-up
                tensor.add_(0.3 * torch.randn_like(tensor))
    return net.eval()


class Ours:
    """Full forward passes over right-padded rows of one length, so that one program serves every step."""

    def __init__(self, folder, *, length):
        self.config = hf_config.read_config(folder)
        self.params = jax.tree.map(jnp.asarray, load.load_params(folder, self.config))
        self.length = length
        self._forward = jax.jit(self._logits)

    def _logits(self, params, tokens_BS, segments_BS):
        positions_BS = jnp.broadcast_to(jnp.arange(self.length), tokens_BS.shape)
        hidden_BSD = transformer.hidden_states(params, self.config, tokens_BS, positions_BS, segments_BS)
        return transformer.logits(params, self.config, hidden_BSD[0])

    def logits(self, ids):
        padding = self.length - len(ids)
        tokens_BS = jnp.asarray([[*ids, *[0] * padding]], jnp.int32)
        segments_BS = jnp.asarray([[1] * len(ids) + [0] * padding], jnp.int32)
        return np.asarray(self._forward(self.params, tokens_BS, segments_BS))[: len(ids)]

    def continuation(self, ids, count):
        """Greedy, by the cached decoding that training samples with. No end of turn: `count` tokens."""
        engine = Engine(self.config, eos_ids=[self.config.vocab_size], num_slots=1, length=len(ids) + count)
        ((row,),) = engine.generate(
            self.params, [ids], [[RowIndex(question=0)]], seed=0, iteration=0, max_length=count, temperature=0.0
        )
        return row.token_ids.tolist()


def their_logits(net, ids):
    with torch.no_grad():
        return net(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def their_continuation(net, ids, count):
    """Greedy, with their cache. No end of turn: all `count` tokens are compared."""
    out = net.generate(
        input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=count,
        min_new_tokens=count, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


def there_and_back(source, folder):
    """Takes a folder through `convert` and returns the model that transformers makes of what comes out."""
    convert.import_hf(source, folder / "checkpoint")
    convert.export_hf(folder / "checkpoint", folder / "back", max_shard_bytes=20_000)
    net, report = transformers.AutoModelForCausalLM.from_pretrained(
        folder / "back", dtype="auto", output_loading_info=True, attn_implementation="eager"
    )
    assert not [key for key, found in report.items() if found]  # missing, unexpected or of another shape
    given, came = converted.weights(source), converted.weights(folder / "back")
    text = {name.replace("language_model.", "").replace("model.model.", "model."): t for name, t in given.items()}
    text = {name: tensor for name, tensor in text.items() if "vision_tower" not in name and "projector" not in name}
    if net.config.tie_word_embeddings:
        text.pop("lm_head.weight", None)
    converted.same_bits(came, text)
    return net.eval()


@pytest.mark.parametrize("name", MODELS)
def test_random_weights(tmp_path, name):
    net = random_model(name)
    source = tmp_path / "source"
    net.save_pretrained(source)
    for file in model_source.tokenizer_folder("arithmetic").iterdir():
        shutil.copy(file, source)
    ours = Ours(source, length=64)
    ids = np.random.default_rng(1).integers(4, 89, 48).tolist()
    wanted = their_logits(net, ids)
    np.testing.assert_allclose(ours.logits(ids), wanted, atol=1e-4, rtol=0)
    assert ours.continuation(ids, 32) == their_continuation(net, ids, 32)

    back = there_and_back(source, tmp_path)
    assert back.dtype == torch.float32
    np.testing.assert_array_equal(their_logits(back, ids), wanted)
    half = tmp_path / "half"
    shutil.copytree(source, half / "source")
    net.to(torch.bfloat16).save_pretrained(half / "source")
    assert there_and_back(half / "source", half).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
def test_exported_adapters_compute_the_same_in_peft(tmp_path):
    source = converted.make_folder(tmp_path / "source", hf_folders.LLAMA)
    converted.made_up_lora_run(tmp_path / "run", source)
    convert.export_peft(tmp_path / "run", tmp_path / "adapter")
    convert.export_hf(tmp_path / "run", tmp_path / "merged")
    ids = np.random.default_rng(1).integers(4, 200, 24).tolist()
    net = transformers.AutoModelForCausalLM.from_pretrained(source)
    plain = their_logits(net, ids)
    adapted = their_logits(peft.PeftModel.from_pretrained(net, tmp_path / "adapter").eval(), ids)
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_allclose(Ours(tmp_path / "merged", length=32).logits(ids), adapted, atol=1e-4, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("weights", ["adapter", "model"])
def test_an_exported_critic_computes_the_same(tmp_path, weights):
    """A critic trained beside its policy: of another family than that one, or an adapter on it, merged and for peft."""
    base = converted.make_folder(tmp_path / "base", hf_folders.LLAMA)
    critic = converted.make_folder(tmp_path / "critic", hf_folders.FAMILIES["gemma2"])
    own = converted.made_up_critic_run(tmp_path / "run", base, critic, weights=weights)
    convert.export_hf(tmp_path / "run", tmp_path / "out", of="critic")
    ids = np.random.default_rng(1).integers(4, 200, 24).tolist()
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    ours, theirs = Ours(tmp_path / "out", length=32), their_logits(net, ids)
    np.testing.assert_allclose(ours.logits(ids), theirs, atol=1e-4, rtol=1e-5)
    if weights == "model":
        assert net.config.model_type == "gemma2"
        for mine, exported in zip(jax.tree.leaves(own), jax.tree.leaves(ours.params), strict=True):
            np.testing.assert_array_equal(mine, exported)
        return
    convert.export_hf(tmp_path / "run", tmp_path / "policy")
    convert.export_peft(tmp_path / "run", tmp_path / "adapter", of="critic", base=str(tmp_path / "policy"))
    policy = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    plain = their_logits(policy, ids)
    adapted = their_logits(peft.PeftModel.from_pretrained(policy, tmp_path / "adapter").eval(), ids)
    assert np.abs(adapted - plain).max() > 0.1
    np.testing.assert_allclose(theirs, adapted, atol=1e-4, rtol=1e-4)


def test_a_quickstart_model(tmp_path):
    convert.export_hf(pathlib.Path(tiny_run.start()), tmp_path / "out")
    ours, net = Ours(tmp_path / "out", length=64), transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    for question in ("7*8", "12+30*4-5"):
        messages = [{"role": "user", "content": question}]
        ids = tokenizer.chat_ids(messages)
        their_ids = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert their_ids == ids and their_tokenizer.decode(ids) == tokenizer.chat_text(messages)
        np.testing.assert_allclose(ours.logits(ids), their_logits(net, ids), atol=1e-4, rtol=0)
        assert ours.continuation(ids, 16) == their_continuation(net, ids, 16)
    assert their_tokenizer.eos_token_id == tokenizer.end_of_turn_id == net.generation_config.eos_token_id


@pytest.mark.parametrize("name", ["smollm2", "qwen3", "gemma2", "gemma3, multimodal"])
@pytest.mark.parametrize("keeps", ["another head", "the head alone", "both, equal"])
def test_a_tied_config_with_a_head_in_its_weights(tmp_path, name, keeps):
    """transformers 5 takes a head of its own for what it is, and either name for the one table."""
    net = random_model(name)
    source = tmp_path / "source"
    net.save_pretrained(source)
    for file in model_source.tokenizer_folder("arithmetic").iterdir():
        shutil.copy(file, source)
    tensors = converted.weights(source)
    (embed,) = (key for key in tensors if key.endswith("embed_tokens.weight"))
    table = tensors[embed] if keeps == "the head alone" else tensors[embed].copy()
    tensors["lm_head.weight"] = table[::-1].copy() if keeps == "another head" else table
    if keeps == "the head alone":
        del tensors[embed]
    safetensors.numpy.save_file(tensors, source / "model.safetensors", metadata={"format": "pt"})
    ids = np.random.default_rng(1).integers(4, 89, 48).tolist()
    their = type(net).from_pretrained(source, attn_implementation="eager").eval()
    ours = Ours(source, length=64)
    wanted = their_logits(their, ids)
    assert ours.config.tie_embeddings is (keeps != "another head")
    np.testing.assert_allclose(ours.logits(ids), wanted, atol=1e-4, rtol=0)

    convert.import_hf(source, tmp_path / "checkpoint")
    convert.export_hf(tmp_path / "checkpoint", tmp_path / "back")
    back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    assert back.config.tie_word_embeddings is ours.config.tie_embeddings  # said, so that transformers 4 reads it too
    np.testing.assert_array_equal(their_logits(back, ids), wanted)


def test_old_spelling_of_rope_gives_the_same_config(tmp_path):
    transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE).save_pretrained(tmp_path)
    new = hf_config.read_config(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    scaling = settings.pop("rope_parameters")
    settings |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert hf_config.read_config(tmp_path) == new


if "CGRPO_SMOLLM2" in os.environ:
    SMOLLM2 = pathlib.Path(os.environ["CGRPO_SMOLLM2"])

    def test_smollm2(tmp_path):
        tokenizer = load_tokenizer(SMOLLM2)
        ours = Ours(SMOLLM2, length=128)
        load.check_vocab(tokenizer, ours.config)
        net = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
        messages = [{"role": "user", "content": "Sam has 12 pens and buys 30 more. How many pens?"}]
        ids = tokenizer.chat_ids(messages)
        np.testing.assert_allclose(ours.logits(ids), their_logits(net, ids), atol=1e-3, rtol=0)
        assert ours.continuation(ids, 64) == their_continuation(net, ids, 64)

        convert.import_hf(SMOLLM2, tmp_path / "checkpoint")
        convert.export_hf(tmp_path / "checkpoint", tmp_path / "back")
        converted.same_bits(converted.weights(tmp_path / "back"), converted.weights(SMOLLM2))
        theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "back")
        assert theirs.apply_chat_template(messages, add_generation_prompt=True, return_dict=False) == ids
