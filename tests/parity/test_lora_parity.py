"""Our adapters in transformers, through peft. Needs the extra `parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
import transformers
from adapters import SETTINGS, logits, random_adapters, tokens
from hf_folders import THEIR_VISION

from cgrpo_jax.models import lora
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.lora import Base


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft asks transformers
@pytest.mark.parametrize("family", ["Llama", "Qwen3", "Gemma2", "Gemma3Text", "Gemma3"])
def test_peft_computes_the_same(tmp_path, family):
    """Our adapters in transformers, through peft, against ours, unmerged and merged."""
    torch.manual_seed(0)
    multimodal = family == "Gemma3"
    small = dict(
        vocab_size=97, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, head_dim=8,
        intermediate_size=48, max_position_embeddings=128, initializer_range=0.3, tie_word_embeddings=False,
    )  # fmt: skip
    if multimodal:
        small = {"text_config": small | {"tie_word_embeddings": True}, "vision_config": THEIR_VISION}
    net = transformers.AutoModelForCausalLM.from_config(getattr(transformers, f"{family}Config")(**small)).eval()
    net.save_pretrained(tmp_path / "base")
    config = hf_config.read_config(tmp_path / "base")
    weights = jax.tree.map(jnp.asarray, load.load_params(tmp_path / "base", config))
    base, adapters = Base(weights, SETTINGS.scale), random_adapters(config, size=0.2)
    lora.write_peft(tmp_path / "adapter", adapters, SETTINGS, base_name="base", multimodal=multimodal)

    given = torch.tensor(tokens(config, 24))[None]
    with torch.no_grad():
        plain = net(given).logits[0].numpy()
        adapted = peft.PeftModel.from_pretrained(net, tmp_path / "adapter").eval()
        loaded = adapted.load_adapter(tmp_path / "adapter", "default")
        assert not [name for name in adapted.state_dict() if "lora" in name and "vision" in name]
        assert not loaded.unexpected_keys and not [name for name in loaded.missing_keys if "lora" in name]
        theirs = adapted(given).logits[0].numpy()
    assert np.abs(theirs - plain).max() > 1
    for ours in (base.attach(adapters), base.merge(adapters)):
        np.testing.assert_allclose(logits(ours, config, tokens(config, 24)), theirs, atol=1e-4, rtol=0)
