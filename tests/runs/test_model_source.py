"""A model that the configuration describes: of any family, with the family's own biases, norms and windows."""

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf.families import TEXT_FAMILIES
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import model_source
from cgrpo_jax.runs.config import Config

SIZES = {"num_layers": 2, "embed_dim": 24, "num_heads": 4, "num_kv_heads": 2, "mlp_dim": 32, "max_context": 64}


def shape(**changes):
    values = {"tokenizer": "arithmetic"} | SIZES | changes
    config = config_lib.replaced(Config(), {f"model.{name}": value for name, value in values.items()})
    return model_source.read_shape(config, model_source.of_policy(config))


def test_without_a_family_it_is_what_it_was():
    vocab = shape().vocab_size
    assert shape() == ModelConfig(vocab_size=vocab, head_dim=6, **SIZES)


SETS_APART = {
    "llama": {},
    "mistral": {"window": 4096, "local_layers": (True, True)},
    "qwen2": {"attention_bias": True},
    "qwen3": {"qk_norm": True},
    "gemma2": {"post_norms": True, "logit_softcap": 30.0, "local_layers": (True, False), "query_scale": None},
    "gemma3_text": {"post_norms": True, "qk_norm": True, "rope_theta": 1e6, "local_rope_theta": 1e4},
}


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_a_family_brings_what_sets_it_apart_and_can_be_exported(family):
    made = shape(family=family)
    assert {name: getattr(made, name) for name in SETS_APART[family]} == SETS_APART[family]
    assert hf_config.config_json(made, dtype="float32")["model_type"] == family


def test_what_a_family_leaves_open():
    made = shape(family="qwen3", head_dim=8, rope_theta=5e5, tie_embeddings=False, window=16)
    assert (made.head_dim, made.rope_theta, made.tie_embeddings) == (8, 5e5, False)
    assert made.window == 16 and made.local_layers == (True, True)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"family": "gpt2"}, "model.family 'gpt2' is unknown; use one of llama, mistral, qwen2, qwen3, gemma2, "),
        ({"window": 16}, "model.window 16 is given, but no layer of family llama has one; leave it at 0"),
        ({"num_heads": 5, "num_kv_heads": 5}, "model.num_heads 5 does not divide model.embed_dim 24; change one, or"),
        ({"num_kv_heads": 3}, "model.family llama: num_kv_heads 3 does not divide num_heads 4"),
        ({"head_dim": 5}, "model.family llama: head_dim 5 is odd"),
        ({"mlp_dim": 0}, "model.mlp_dim 0 is no size"),
    ],
)
def test_shapes_that_are_none(changes, message):
    with pytest.raises(UserError) as caught:
        shape(**changes)
    assert message in str(caught.value)
