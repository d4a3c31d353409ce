"""What a Hugging Face model folder holds besides its weights: `config.json`, tokenizer, template, generation config,
and of an exported one the model card.

A run keeps a copy in `WORKDIR/model`, so that its checkpoints say by themselves what model they are of.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import cgrpo_jax
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import fast_tokenizer, unchanged
from cgrpo_jax.models.hf.tokenizer import Tokenizer
from cgrpo_jax.models.hf.tokenizer_files import LARGEST_FILE
from cgrpo_jax.models.params import ModelConfig
from cgrpo_jax.runtime import digests, files, reading
from cgrpo_jax.runtime.files import write_atomically
from cgrpo_jax.runtime.json_files import object_at, read_json_object

_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "chat_template.jinja",
)  # fmt: skip
_GENERATION = "generation_config.json"
# What a model card fills the fields of a prompt with.
_EXAMPLE = {
    "question": "What is 2 + 3?",
    "response": "2 + 3 = 6. Answer: 6",
    "answer": "5",
    "solution": "2 + 3 = 5. Answer: 5",
}


def write(
    folder: pathlib.Path,
    config: ModelConfig,
    tokenizer: Tokenizer,
    *,
    source: pathlib.Path | None,
    tokenizer_source: pathlib.Path,
) -> None:
    """Describes a model in a folder, which is made; what lies there from before is replaced.

    Args:
      folder: for example `WORKDIR/model`.
      config: the model.
      tokenizer: its tokenizer, as loaded from `tokenizer_source`.
      source: the Hugging Face folder that the model came from; None for one that came from no folder.
      tokenizer_source: a folder with tokenizer files, or a SentencePiece file with its settings beside it.

    Raises:
      UserError: a file can't be read or written, or no family of `families.FAMILIES` has this architecture.
    """
    given = read_json_object(source / "config.json") if source else None
    settings = hf_config.config_json(
        config,
        dtype=_dtype(given),
        source=given,
        token_ids={"eos_token_id": _one_or_all(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id},
    )
    generation = {}
    if source and (source / _GENERATION).is_file():
        generation = read_json_object(source / _GENERATION)
    # The tokens that ended a turn while the model was trained, whatever another tokenizer's file said.
    generation |= {"eos_token_id": _one_or_all(tokenizer.eos_ids), "pad_token_id": tokenizer.pad_id}
    with files.checked(folder):
        unchanged.unseal(folder)
        with files.filled_folder(folder, last=digests.FILE) as made:
            for name, content in (("config.json", settings), (_GENERATION, generation)):
                write_atomically(made / name, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
            copy_tokenizer(tokenizer_source, made)
            unchanged.seal(made)


def export(source: pathlib.Path, folder: pathlib.Path, config: ModelConfig, *, dtype: str) -> None:
    """Copies a description for other programs, with weights of another dtype.

    Raises:
      UserError: a file can't be read or written.
    """
    settings = hf_config.config_json(config, dtype=dtype, source=read_json_object(source / "config.json"))
    with files.checked(folder):
        write_atomically(folder / "config.json", json.dumps(settings, indent=2, ensure_ascii=False) + "\n")
        shutil.copyfile(source / _GENERATION, folder / _GENERATION)
    export_tokenizer(source, folder)


def export_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the files of a tokenizer for other programs, with a `tokenizer.json` where it can say the same.

    Raises:
      UserError: a file can't be read or written.
    """
    with files.checked(folder):
        copy_tokenizer(source, folder)
        fast_tokenizer.write(folder)


def copy_tokenizer(source: pathlib.Path, folder: pathlib.Path) -> None:
    """Copies the files of a tokenizer as they are.

    Raises:
      UserError: one is larger than such files are.
    """
    where = source if source.is_dir() else source.parent
    for name in _TOKENIZER_FILES:
        origin = source if name == "tokenizer.model" and source.is_file() else where / name
        if origin.is_file() and origin.resolve() != (folder / name).resolve():
            reading.check_size(origin, most=LARGEST_FILE)
            shutil.copyfile(origin, folder / name)


def stored_dtype(folder: pathlib.Path) -> str:
    """Returns the dtype in which a described model's weights were given: that of its `config.json`, else float32."""
    return _dtype(read_json_object(folder / "config.json"))


def _dtype(settings: dict | None) -> str:
    settings = settings or {}
    inner = object_at(settings, "text_config", "config.json")
    found = settings.get("dtype") or settings.get("torch_dtype") or inner.get("dtype") or inner.get("torch_dtype")
    return found if found in hf_config.DTYPES else "float32"


def _one_or_all(ids: tuple[int, ...]) -> int | list[int]:
    return ids[0] if len(ids) == 1 else list(ids)


# --- the model card --------------------------------------------------------------------------------------------------


def model_card(
    name: str,
    *,
    folder: pathlib.Path | None = None,
    step: int,
    dtype: str,
    adapter: bool,
    base: str = "",
    critic: bool = False,
    asked: str = "{question}",
    config: Mapping[str, Any] | None = None,
    summary: Any = None,
    template_arguments: Mapping[str, Any] | None = None,
) -> str:
    """Returns the text of an exported folder's README.md: what the model is, how to load it, how it was trained.

    Args:
      name: what to call the model.
      folder: with its tokenizer; None where a `tokenizer.json` and a chat template may be taken for granted.
      step: the checkpoint's.
      dtype: of the weights.
      adapter: whether the folder holds adapters alone, for peft.
      base: the Hugging Face folder that training started from; empty where there was none.
      critic: whether it is what a run has trained as its critic.
      asked: template of the user's turn, with `{question}` and, of a critic's, others of `_EXAMPLE`.
      template_arguments: with which training rendered the chat template.
      config, summary: of the run that trained it, as in its `config.json` and `summary.json`; None where there is none.
    """
    name = " ".join(_printable(name).split())
    head: dict = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if base:
        head["base_model"] = pathlib.Path(base).name
    head["tags"] = ["cgrpo_jax", *(["critique-grpo", "reinforcement-learning"] if config else [])]
    parts = [
        "---\n" + "".join(f"{key}: {_yaml(value)}\n" for key, value in head.items()) + "---\n",
        f"# {name}\n",
        f"Written by cgrpo_jax {cgrpo_jax.__version__}"
        + (f" after iteration {step} of a run of its `train`{', as the critic' if critic else ''}" if config else "")
        + f", weights in {dtype}.\n",
        *_usage(
            name,
            folder,
            adapter=adapter,
            asked=asked,
            prompts=(config or {}).get("prompts", {}),
            arguments=template_arguments or {},
        ),
    ]
    if summary is not None:
        parts += ["## Results of the run\n", f"```json\n{json.dumps(summary, indent=2)}\n```\n"]
    if config:
        parts += ["## Training configuration\n", f"```json\n{json.dumps(config, indent=2)}\n```\n"]
    return "\n".join(parts)


def _usage(
    name: str, folder: pathlib.Path | None, *, adapter: bool, asked: str, prompts: Any, arguments: Mapping
) -> list[str]:
    """Returns what to install, and a program that loads the model and asks it as it was asked in training."""
    fast = folder is None or (folder / "tokenizer.json").is_file()
    chats, settings = folder is None or (folder / "chat_template.jinja").is_file(), {}
    if folder is not None and (folder / "tokenizer_config.json").is_file():
        settings = read_json_object(folder / "tokenizer_config.json")
    # transformers builds a tokenizer from SentencePiece's file with these.
    more = (["peft"] if adapter else []) + ([] if fast else ["sentencepiece", "protobuf"])
    # Whole, and not rebuilt by the rules of the model's family, which AutoTokenizer may do.
    whole = settings.get("tokenizer_class") == "PreTrainedTokenizerFast"
    model = "AutoPeftModelForCausalLM" if adapter else "AutoModelForCausalLM"
    tokenizer = "PreTrainedTokenizerFast" if fast and whole else "AutoTokenizer"
    quoted = json.dumps(name, ensure_ascii=False)
    lines = [
        *([f"from peft import {model}"] if adapter else []),
        f"from transformers import {tokenizer if adapter else ', '.join(sorted([model, tokenizer]))}",
        "",
        f"tokenizer = {tokenizer}.from_pretrained({quoted})",
        f"model = {model}.from_pretrained({quoted})",
    ]
    if chats or settings.get("chat_template"):
        prompts = prompts if isinstance(prompts, dict) else {}
        system = [{"role": "system", "content": str(prompts["system"])}] if prompts.get("system") else []
        messages = json.dumps([*system, {"role": "user", "content": asked}], ensure_ascii=False)
        lines += [
            "",
            f"messages = {messages}",
            *(
                f'messages[-1]["content"] = messages[-1]["content"].replace("{{{field}}}", "{example}")'
                for field, example in _EXAMPLE.items()
                if "{" + field + "}" in asked
            ),
            "prompt = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True'
            + "".join(f", {key}={value!r}" for key, value in arguments.items()),
            ")",
            "output = model.generate(**prompt, max_new_tokens=512)",
            'print(tokenizer.decode(output[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))',
        ]
    code = "\n".join(lines)
    return [f"```sh\npip install {' '.join(['transformers', 'torch', *more])}\n```\n", f"```python\n{code}\n```\n"]


def _yaml(value: str | list[str]) -> str:
    """Returns a value as YAML, of which JSON is a part."""
    return json.dumps(
        [_printable(one) for one in value] if isinstance(value, list) else _printable(value), ensure_ascii=False
    )


def _printable(text: str) -> str:
    """Returns a text without what YAML allows nowhere, such as the undecodable bytes of a file's name."""
    return "".join(character if character.isprintable() else " " for character in text)
