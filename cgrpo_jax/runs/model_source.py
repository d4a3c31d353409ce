"""Where the policy's shape and weights come from: a folder, a checkpoint, an architecture, or the configuration itself.

Decided here, once: a run that loads the model and a plan that only describes it read the same shape. Of a folder in a
bucket a copy on this machine's disk is read: what describes the model at once, its weights when they are loaded.
"""

import dataclasses
import importlib.resources
import pathlib

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf.tokenizer import Tokenizer, load_tokenizer
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runtime import local_copies, places

_NO_MODEL = (
    "no model: set model.folder, or model.init to a converted checkpoint, or model.tokenizer and the shape "
    "(model.num_layers, ...); to plan a run, model.architecture is enough."
)
_ARCHITECTURES = pathlib.Path(str(importlib.resources.files("cgrpo_jax") / "assets" / "architectures"))


@dataclasses.dataclass(frozen=True)
class ModelSource:
    """Where a model comes from.

    Attributes:
      description: Hugging Face folder with its `config.json`; None for one that the configuration describes.
      architecture: name of a described architecture that no weights are at hand of; None for a model that can run.
      tokenizer: folder, or SentencePiece file, of its tokenizer; None of an architecture.
      weights: Hugging Face folder of its weights, which may lie in a bucket; None for others.
      init: checkpoint that its weights are read from; None for others. Without either it is drawn at random.
    """

    description: pathlib.Path | None
    architecture: str | None
    tokenizer: pathlib.Path | None
    weights: pathlib.Path | None = None
    init: pathlib.Path | None = None


def of_policy(config: Config) -> ModelSource:
    """Returns where the policy comes from.

    Raises:
      UserError: the configuration names no model.
    """
    m = config.model
    weights = places.place(m.folder) if m.folder else None
    init = places.place(m.init) if m.init else None
    tokenizer = tokenizer_folder(m.tokenizer) if m.tokenizer else None
    description = weights
    if not description and init and not m.num_layers and (init / "model").is_dir():
        description = init / "model"
    if description:
        description = local_copies.local(description, suffixes=local_copies.DESCRIPTION)
        return ModelSource(description, None, tokenizer or description, weights, init)
    if tokenizer and m.num_layers:
        return ModelSource(None, None, tokenizer, None, init)
    if m.architecture:
        return ModelSource(None, m.architecture, None)
    raise UserError(_NO_MODEL)


def of_frozen(folder: str) -> ModelSource:
    """Returns where a frozen critic, or refiner, comes from: all of it from one Hugging Face folder."""
    path = local_copies.local(folder, suffixes=local_copies.DESCRIPTION)
    return ModelSource(path, None, path, places.place(folder))


def read_shape(config: Config, source: ModelSource, tokenizer: Tokenizer | None = None) -> ModelConfig:
    """Returns a model's shape, without reading a weight.

    Args:
      config: the configuration, which may describe the policy.
      source: from `of_policy` or `of_frozen`.
      tokenizer: its own, where it has been loaded already.

    Raises:
      UserError: a file is missing or damaged, or a size that the configuration gives is none.
    """
    if source.description:
        return hf_config.read_config(source.description)
    if source.architecture:
        return hf_config.read_architecture(_architecture_file(source.architecture))
    assert source.tokenizer  # `of_policy` gives one of the three
    return _described(config, (tokenizer or load_tokenizer(source.tokenizer)).vocab_size)


def check_places(config: Config) -> None:
    """Checks that what `model.folder` and `model.init` name is there, and the latter a checkpoint.

    Raises:
      UserError: it is not there, or `model.init` is a Hugging Face folder.
    """
    given = places.place(config.model.folder)
    if config.model.folder and given.is_file():
        raise UserError(f"model.folder {given} is a file; give the Hugging Face folder that holds it.")
    if config.model.folder and not given.exists():
        begins = "" if given.is_absolute() else f" in {pathlib.Path.cwd()}, where the path begins"
        raise UserError(
            f"model.folder {given} does not exist{begins}: {given / 'config.json'} does not exist; give its place with "
            "--config.model.folder."
        )
    if not config.model.init:
        return
    folder = places.place(config.model.init)
    if not folder.is_dir():
        raise UserError(f"model.init {folder} does not exist; give the folder of a run or of a converted checkpoint.")
    if (
        (folder / "config.json").is_file()
        and not (folder / "checkpoints").is_dir()
        and any(folder.glob("*.safetensors"))
    ):
        raise UserError(
            f"model.init {folder} is a Hugging Face folder; give it as model.folder, or convert it to a checkpoint."
        )


def tokenizer_folder(name: str) -> pathlib.Path:
    """Returns the folder of a tokenizer: "arithmetic" and "snippets" are inside the package, all else is a path."""
    if name in ("arithmetic", "snippets"):
        return pathlib.Path(str(importlib.resources.files("cgrpo_jax") / "assets" / name))
    return local_copies.local(name, suffixes=local_copies.DESCRIPTION)


def _architecture_file(name: str) -> pathlib.Path:
    file = _ARCHITECTURES / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in _ARCHITECTURES.glob("*.json")))
        raise UserError(f"model.architecture {name!r} is unknown; use one of {known}, or set model.folder.")
    return file


def _described(config: Config, vocab_size: int) -> ModelConfig:
    """Returns the shape of a model that the configuration describes itself, to be drawn at random."""
    m = config.model
    for name in ("num_layers", "embed_dim", "num_heads", "num_kv_heads", "mlp_dim", "max_context"):
        if getattr(m, name) < 1:
            raise UserError(f"model.{name} {getattr(m, name)} is no size; a model without a folder needs all of them.")
    if not m.head_dim and m.embed_dim % m.num_heads:
        raise UserError(
            f"model.num_heads {m.num_heads} does not divide model.embed_dim {m.embed_dim}; change one, or set "
            "model.head_dim."
        )
    head_dim = m.head_dim or m.embed_dim // m.num_heads
    sizes = {
        "vocab_size": vocab_size,
        "num_hidden_layers": m.num_layers,
        "hidden_size": m.embed_dim,
        "num_attention_heads": m.num_heads,
        "num_key_value_heads": m.num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": m.mlp_dim,
        "max_position_embeddings": m.max_context,
        "tie_word_embeddings": m.tie_embeddings,
        "query_pre_attn_scalar": head_dim,  # of Gemma: as its small releases have it
    }
    sizes |= {"rope_theta": m.rope_theta} if m.rope_theta else {}
    if m.window:
        sizes |= {"sliding_window": m.window, "use_sliding_window": True, "max_window_layers": 0}
    shape = hf_config.described(m.family, sizes)
    if m.window and shape.window != m.window:
        raise UserError(f"model.window {m.window} is given, but no layer of family {m.family} has one; leave it at 0.")
    return shape
