"""What the tests of models/test_attention share with those that take longer."""

from cgrpo_jax.models.params import ModelConfig


def config_of(H, G, K, **more):
    sizes = {"vocab_size": 8, "num_layers": 2, "embed_dim": 32, "mlp_dim": 8}
    return ModelConfig(**sizes, num_heads=H, num_kv_heads=G, head_dim=K, **more)
