"""A model's folder, and texts for it, that need no download: random weights, a tokenizer of made-up words."""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import export
from cgrpo_jax.models.params import ModelConfig

CONTROL = ("<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_SYLLABLES = tuple(first + vowel for first in "bdfgjklmnprstvz" for vowel in "aeiou")


def words(number: int) -> list[str]:
    """Returns different words of two to four syllables, always the same ones, the first of which are the shortest.

    Example:
      words(3) == ["baba", "babe", "babi"]
    """
    found: list[str] = list(_SYLLABLES)
    made: list[str] = []
    while len(made) < number:
        found = [start + more for start in found for more in _SYLLABLES]
        made += found
    return made[:number]


def write_tokenizer(folder: pathlib.Path, vocab_size: int, *, end_share: float = 0.0) -> pathlib.Path:
    """Writes the files of a byte-level BPE tokenizer with ChatML, and returns their folder.

    Args:
      folder: is made.
      vocab_size: ids, all of which are used.
      end_share: of the ids, control tokens that end a text besides `<|im_end|>`. What a model of random weights writes
        is then of very uneven lengths, as a trained model's is.
    """
    control = [*CONTROL, *(f"<|end{number}|>" for number in range(round(end_share * vocab_size)))]
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(control),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(("".join(f" {word}" for word in words(vocab_size)),), trainer)
    model.add_special_tokens([tokenizers.AddedToken(one, special=True) for one in control])
    if model.get_vocab_size() != vocab_size:
        raise ValueError(f"the tokenizer has {model.get_vocab_size()} ids in the place of {vocab_size}.")
    folder.mkdir(parents=True, exist_ok=True)
    model.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": CONTROL[1], "pad_token": CONTROL[0]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": TEMPLATE}))
    ends = [model.token_to_id(one) for one in control[1:]]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    return folder


def write_model(folder: pathlib.Path, config: ModelConfig, *, max_context: int, end_share: float = 0.0) -> pathlib.Path:
    """Writes the Hugging Face folder of a model of a shape, its random float32 weights included, and returns it.

    Args:
      folder: is made.
      config: the shape; its vocabulary is the tokenizer's.
      max_context: tokens.
      end_share: as of `write_tokenizer`.
    """
    write_tokenizer(folder, config.vocab_size, end_share=end_share)
    config = dataclasses.replace(config, max_context=max_context)
    end = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json")).token_to_id(CONTROL[1])
    described = hf_config.config_json(config, dtype="float32", source=None, token_ids={"eos_token_id": end})
    (folder / "config.json").write_text(json.dumps(described))
    params = params_lib.init_params(config, seed=0)

    def read(path: tuple[str, ...]) -> jax.Array:
        found: Any = params
        for name in path:
            found = found[name]
        return found

    export.save_params(folder, config, read, dtype="float32")
    return folder


def text(rng: np.random.Generator, number: int) -> str:
    """Returns so many words, a line of ten each."""
    drawn = rng.integers(0, len(_COMMON), number)
    lines = [" ".join(_COMMON[int(i)] for i in drawn[first : first + 10]) for first in range(0, number, 10)]
    return ".\n".join(lines)


_COMMON: list[str] = words(len(_SYLLABLES) ** 2)  # of two syllables, most of which are one token


def write_lines(path: pathlib.Path, rows: Sequence[dict[str, Any]]) -> pathlib.Path:
    """Writes rows as JSON lines, and returns their file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
