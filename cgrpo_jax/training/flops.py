"""Model FLOPs of an update, and their share of the machine's peak (MFU).

What the model's equations need, whatever the program does: padding, recomputed activations and a prompt that is read
again for each of its responses are work for nothing, and count as none.
"""

import re
from typing import Protocol

from cgrpo_jax.models.params import ModelConfig, num_params
from cgrpo_jax.runtime import chips

# What JAX calls a TPU, and its name in `chips.CHIPS`.
TPUS = {
    "TPU v4": "v4",
    "TPU v5 lite": "v5e",
    "TPU v5e": "v5e",
    "TPU v5": "v5p",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v6e": "v6e",
    "TPU7x": "tpu7x",
}
# NVIDIA's data sheets of the A100, H100 and H200: dense bfloat16, which is half of what they give "with sparsity". The
# first that is found in the device's name.
_GPUS = (
    (r"\bH[12]00 NVL\b", 835.5e12),
    (r"\bH100 PCIe\b", 756.5e12),
    (r"\bH[12]00\b", 989.5e12),
    (r"\bA100\b", 312e12),
)


def of_update(
    config: ModelConfig,
    *,
    tokens: float,
    targets: float,
    pairs: float,
    local_pairs: float | None = None,
    adapters: bool = False,
) -> float:
    """Returns the FLOPs of forward and backward pass: `6 P tokens + 6 V D targets + 12 L H d pairs`.

    P are the parameters without embedding and unembedding. Each costs 2 FLOPs per token forward, 2 for the gradient of
    what comes in, 2 for its own: the convention of PaLM (https://arxiv.org/abs/2204.02311, appendix B), which credits
    nothing for recomputation. Here attention is counted by the pairs that the mask lets through, not by all S^2: 4
    FLOPs per pair and head dimension forward, 8 backward. And the unembedding is only read at targets.

    With adapters (LoRA) the weights that they belong to get no gradient, so 4 takes the place of both 6; attention has
    no weights, and keeps its 12. The adapters' own products, a few hundredths at most, are not counted.

    Args:
      config: the model's shape.
      tokens: that are read; a prompt that several rows share, once, and no padding.
      targets: tokens that are learned.
      pairs: of a query and a key that it sees, itself included, in a layer that is not local.
      local_pairs: likewise in a local layer; needed where there are any.
      adapters: whether adapters alone are trained.

    Raises:
      ValueError: the model has local layers and `local_pairs` is missing.

    Example:
      # A prompt of 3 tokens and a response of 2, of which the last is not read: 4 tokens, 1 + 2 + 3 + 4 pairs.
      of_update(config, tokens=4, targets=2, pairs=10)
    """
    embedding = config.vocab_size * config.embed_dim
    inner = num_params(config) - embedding * (1 if config.tie_embeddings else 2)
    num_local = sum(config.local_layers)
    if num_local and local_pairs is None:
        raise ValueError(f"{num_local} of {config.num_layers} layers are local; give local_pairs.")
    seen = (config.num_layers - num_local) * pairs + num_local * (local_pairs or 0)
    by_weight = 4 if adapters else 6
    return float(by_weight * (inner * tokens + embedding * targets) + 12 * config.num_heads * config.head_dim * seen)


class Device(Protocol):
    """What `jax.devices` lists."""

    device_kind: str


def peak_flops(device: Device) -> float | None:
    """Returns the published peak of dense bfloat16 FLOP/s of a device; None for one whose peak is not known here.

    Example:
      peak_flops(jax.devices()[0]) == 197e12  # on a TPU v5e
    """
    kind = device.device_kind
    if kind in TPUS:
        return chips.CHIPS[TPUS[kind]].flops
    if "MIG" in kind:  # a slice of a GPU, named after the whole one
        return None
    return next((peak for pattern, peak in _GPUS if re.search(pattern, kind)), None)


def mfu(flops: float, seconds: float, *, num_devices: int, peak: float) -> float:
    """Returns model FLOPs utilisation, `flops / (seconds num_devices peak)`, with the peak of one device in FLOP/s.

    Example:
      mfu(8e12, 2.0, num_devices=4, peak=2e12) == 0.5
    """
    return flops / (seconds * num_devices * peak)
