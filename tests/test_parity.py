"""The same weights in `transformers` and here: logits and continuations.

Needs the extra `parity`. With CGRPO_SMOLLM2 naming a SmolLM2-135M-Instruct folder, real weights are compared too.
"""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from cgrpo_jax import families, forward, hf  # noqa: E402
from cgrpo_jax.generate import Generator  # noqa: E402
from cgrpo_jax.records import RowIndex  # noqa: E402
from cgrpo_jax.tokenizer import load_tokenizer  # noqa: E402

pytestmark = pytest.mark.parity

SMALL = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,  # large enough for attention to be far from uniform
}
LLAMA3_ROPE = {
    "rope_theta": 10000.0,
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
FAMILIES = {
    "llama": transformers.LlamaConfig(**SMALL, rope_parameters=LLAMA3_ROPE, tie_word_embeddings=False),
    "llama 2": transformers.LlamaConfig(**SMALL | {"num_key_value_heads": 4}, tie_word_embeddings=False),
    "smollm2": transformers.LlamaConfig(**SMALL, tie_word_embeddings=True),
    "mistral": transformers.MistralConfig(**SMALL, sliding_window=None),
    "mistral, window": transformers.MistralConfig(**SMALL, sliding_window=9),
    "qwen2": transformers.Qwen2Config(**SMALL, tie_word_embeddings=True),
    "qwen2, untied": transformers.Qwen2Config(**SMALL, tie_word_embeddings=False),
    "qwen3": transformers.Qwen3Config(**SMALL, tie_word_embeddings=True),
    "gemma2": transformers.Gemma2Config(**SMALL, sliding_window=9, query_pre_attn_scalar=10),
    "gemma3": transformers.Gemma3TextConfig(
        **SMALL | {"num_hidden_layers": 7}, sliding_window=9, query_pre_attn_scalar=10
    ),
}


class Ours:
    """Full forward passes over right-padded rows of one length, so that one program serves every step."""

    def __init__(self, folder, *, length):
        self.config = families.read_config(folder)
        self.params = jax.tree.map(jnp.asarray, hf.load_params(folder, self.config))
        self.length = length
        self._forward = jax.jit(self._logits)

    def _logits(self, params, tokens_BS, segments_BS):
        positions_BS = jnp.broadcast_to(jnp.arange(self.length), tokens_BS.shape)
        hidden_BSD = forward.hidden_states(params, self.config, tokens_BS, positions_BS, segments_BS)
        return forward.logits(params, self.config, hidden_BSD)

    def logits(self, ids):
        padding = self.length - len(ids)
        tokens_BS = jnp.asarray([[*ids, *[0] * padding]], jnp.int32)
        segments_BS = jnp.asarray([[1] * len(ids) + [0] * padding], jnp.int32)
        return np.asarray(self._forward(self.params, tokens_BS, segments_BS))[0, : len(ids)]

    def continuation(self, ids, count):
        """Greedy, by the cached decoding that training samples with. No end of turn: `count` tokens."""
        generate = Generator(self.config, eos_ids=[self.config.vocab_size], max_rows=1)
        ((row,),) = generate(
            self.params, [ids], [[RowIndex(question=0)]], seed=0, iteration=0, max_length=count, temperature=0.0
        )
        return row.token_ids.tolist()


def their_logits(net, ids):
    with torch.no_grad():
        return net(torch.tensor([ids])).logits[0].float().numpy()


def their_continuation(net, ids, count):
    """Greedy, with their cache. No end of turn: all `count` tokens are compared."""
    out = net.generate(
        torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=count,
        min_new_tokens=count, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    return out[0, len(ids) :].tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_random_weights(tmp_path, family):
    torch.manual_seed(0)
    # Its attention that knows soft-caps: the fused one leaves them out.
    net = transformers.AutoModelForCausalLM.from_config(FAMILIES[family], attn_implementation="eager").eval()
    with torch.no_grad():
        for name, tensor in net.named_parameters():
            if "norm" in name or "bias" in name:  # initialised to 1 and 0, which would hide a mix-up
                tensor.add_(0.3 * torch.randn_like(tensor))
    net.save_pretrained(tmp_path)
    ours = Ours(tmp_path, length=64)
    ids = np.random.default_rng(1).integers(0, SMALL["vocab_size"], 48).tolist()
    np.testing.assert_allclose(ours.logits(ids), their_logits(net, ids), atol=1e-4, rtol=0)
    assert ours.continuation(ids, 32) == their_continuation(net, ids, 32)


def test_old_spelling_of_rope_gives_the_same_config(tmp_path):
    FAMILIES["llama"].save_pretrained(tmp_path)
    new = families.read_config(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    scaling = settings.pop("rope_parameters")
    settings |= {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    assert families.read_config(tmp_path) == new


if "CGRPO_SMOLLM2" in os.environ:
    SMOLLM2 = pathlib.Path(os.environ["CGRPO_SMOLLM2"])

    def test_smollm2_logits_and_continuation():
        tokenizer = load_tokenizer(SMOLLM2)
        ours = Ours(SMOLLM2, length=128)
        hf.check_vocab(tokenizer, ours.config)
        net = transformers.AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32).eval()
        ids = tokenizer.chat_ids([{"role": "user", "content": "Sam has 12 pens and buys 30 more. How many pens?"}])
        np.testing.assert_allclose(ours.logits(ids), their_logits(net, ids), atol=1e-3, rtol=0)
        assert ours.continuation(ids, 64) == their_continuation(net, ids, 64)
