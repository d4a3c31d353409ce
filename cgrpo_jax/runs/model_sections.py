"""The sections of a configuration that say which model is trained, and how and on which devices it is computed."""

import dataclasses
from collections.abc import Iterator

from cgrpo_jax.models import lora, transformer
from cgrpo_jax.models.hf.families import TEXT_FAMILIES
from cgrpo_jax.runs.keys import (
    ALL,
    key,
    not_negative,
    one_of,
    refused,
)


@dataclasses.dataclass(frozen=True)
class Compute:
    """How the devices compute."""

    dtype: str = key(
        "",
        "of generation, forward and backward pass: float32, bfloat16; empty: bfloat16, on a CPU float32",
        one_of("", "float32", "bfloat16"),
    )
    remat: str = key(
        "layer",
        "what of a layer the backward pass computes again: layer all of it, mlp the MLP, none only what is "
        "element-wise; the less, the faster, and the more memory",
        one_of(*transformer.REMAT),
        may_change=ALL,
        because="what the backward pass computes again",
    )
    keep_programs: bool = key(
        True,
        "keep compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache/cgrpo_jax/compiled",
        may_change=ALL,
        because="a program is the same wherever it comes from",
    )
    stall_timeout: float = key(
        1800.0,
        "seconds in which no step, file or program may end, after which the process ends itself; 0: no limit",
        not_negative,
        may_change=ALL,
        because="when a process that hangs ends",
    )
    compile_timeout: float = key(
        3600.0,
        "likewise while a program is compiled; 0: no limit",
        not_negative,
        may_change=ALL,
        because="when a process that hangs ends",
    )


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the devices of all processes are divided; the product is the number of devices."""

    replica: int = key(1, "whole copies of the model", may_change=ALL, because="how the devices share the work")
    fsdp: int = key(
        0,
        "shares of the weights and of the optimiser's state, gathered layer by layer; 0: all that is left",
        may_change=ALL,
        because="how the devices share the work",
    )
    tensor: int = key(
        1,
        "shares of heads, MLP and vocabulary, each computed where it lies",
        may_change=ALL,
        because="how the devices share the work",
    )
    gen_tensor: int = key(
        0,
        "the same while texts are written, a multiple of mesh.tensor: fewer, larger data groups; 0: mesh.tensor",
        may_change=ALL,
        because="how the devices share the work",
    )


@dataclasses.dataclass(frozen=True)
class Model:
    """A Hugging Face folder, or a shape that is initialised at random."""

    folder: str = key("", "Hugging Face folder", is_path=True)
    tokenizer: str = key("", "folder; empty: the model's own. arithmetic, snippets: those of the package", is_path=True)
    architecture: str = key(
        "", "file assets/architectures/NAME.json of the package: to plan a run before its weights are at hand"
    )
    init: str = key("", "folder of another run, or of a converted checkpoint, to take the weights from", is_path=True)
    family: str = key(
        "llama",
        "of a shape: whose biases, norms, windows and soft-caps it has",
        one_of(*TEXT_FAMILIES),
    )
    num_layers: int = key(0, "of a shape")
    embed_dim: int = key(0, "of a shape")
    num_heads: int = key(0, "of a shape")
    num_kv_heads: int = key(0, "of a shape")
    mlp_dim: int = key(0, "of a shape")
    max_context: int = key(0, "of a shape, in tokens")
    head_dim: int = key(0, "of a shape; 0: embed_dim / num_heads", not_negative)
    rope_theta: float = key(0.0, "of a shape; 0: the family's default", not_negative)
    window: int = key(0, "of a shape: tokens that a layer with a window sees; 0: the family's default", not_negative)
    tie_embeddings: bool = key(True, "of a shape: the embedding is the head too")


@dataclasses.dataclass(frozen=True)
class Lora:
    """Low-rank adapters of frozen weights, trained instead of the weights."""

    rank: int = key(0, "0: train all weights", not_negative)
    alpha: float = key(32.0, "the adapters' product is multiplied by alpha / rank", unread_with={"lora.rank": (0,)})
    targets: tuple[str, ...] = key(
        ("q", "k", "v", "o", "gate", "up", "down"),
        "which projections have adapters: q,v or q_proj,v_proj; all-linear: all of them",
        unread_with={"lora.rank": (0,)},
        spelt=lora.our_targets,
    )

    def violations(self, name: str) -> Iterator[str]:
        """Yields what keys of the section have against each other."""
        if self.rank > 0:
            text = refused(lora.LoraSettings, rank=self.rank, alpha=self.alpha, targets=tuple(self.targets))
            if text:
                yield f"{name}: {text}"
