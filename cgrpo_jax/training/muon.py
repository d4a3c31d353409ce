"""Muon: steps of matrices whose singular values are all alike, and AdamW's steps for the rest."""

import math
from typing import Any

import jax
import optax

_BETA = 0.95  # of the momentum
_RMS = 0.2  # of a step, before the learning rate: about that of AdamW's


def scale_by_muon(*, b1: float, b2: float, mu_dtype: str | None = None) -> optax.GradientTransformation:
    """Scales gradients as Muon does (Jordan, 2024): of a layer's matrix `W [m, n]` with momentum `M = U S V^T`,

        step = 0.2 sqrt(max(m, n)) U V^T

    What few rows of a batch teach moves it as far as what all teach. The factor gives a step the size of AdamW's, so
    that one learning rate serves all weights (arXiv 2502.16982, Eq. 4). Embeddings, norms and biases get AdamW's. Of a
    projection to or from heads, all heads are one matrix, layer by layer; each half of an adapter is one.

    Args:
      b1, b2: AdamW's.
      mu_dtype: of the first moments; None keeps the weights'.
    """
    orthogonal = optax.contrib.scale_by_muon(beta=_BETA, mu_dtype=mu_dtype, weight_dimension_numbers=_all_axes)
    adam = optax.scale_by_adam(b1=b1, b2=b2, mu_dtype=mu_dtype)
    return optax.partition(
        {"muon": optax.chain(orthogonal, optax.stateless(lambda updates, _: _sized(updates))), "adam": adam},
        lambda params: jax.tree_util.tree_map_with_path(lambda *at: "muon" if _axes(*at) else "adam", params),
    )


def _sized(updates):
    def size(path, x):
        axes = _axes(path, x)
        sides = (math.prod(x.shape[i] for i in side) for side in axes or ())
        return x * (_RMS * math.sqrt(max(sides))) if axes else x

    return jax.tree_util.tree_map_with_path(size, updates, is_leaf=_is_masked)


def _all_axes(params):
    def numbers(path, x):
        axes = _axes(path, x)
        return optax.contrib.MuonDimensionNumbers(*axes) if axes else optax.MaskedNode()

    return jax.tree_util.tree_map_with_path(numbers, params, is_leaf=_is_masked)


def _is_masked(x: Any) -> bool:
    return isinstance(x, optax.MaskedNode)


def _axes(path, x) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Returns the axes of a matrix's inputs and of its outputs, behind that of the layers; None where it is none."""
    weight, _, half = path[-1].key.partition("_lora_")
    if _is_masked(x) or weight not in ("q", "k", "v", "o", "gate", "up", "down"):
        return None
    if half == "a":
        inputs = x.ndim - 2
    else:  # o alone reads heads, which are two axes
        inputs = 2 if weight == "o" and not half else 1
    return tuple(range(1, 1 + inputs)), tuple(range(1 + inputs, x.ndim))
