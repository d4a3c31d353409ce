"""The model card of an exported folder, README.md: what it is, how to load it, how it was trained, what it reached."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import cgrpo_jax


def card(
    name: str,
    *,
    step: int,
    dtype: str,
    adapter: bool,
    base: str = "",
    config: Mapping[str, Any] | None = None,
    summary: Any = None,
) -> str:
    """Returns the text of a card.

    Args:
      name: what to call the model.
      step: the checkpoint's.
      dtype: of the weights.
      adapter: whether the folder holds adapters alone, for peft.
      base: the Hugging Face folder that training started from; empty where there was none.
      config, summary: of the run that trained it, as in its `config.json` and `summary.json`; None where there is none.
    """
    name = " ".join(_printable(name).split())
    head: dict = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if base:
        head["base_model"] = pathlib.Path(base).name
    head["tags"] = ["cgrpo_jax", *(["critique-grpo", "reinforcement-learning"] if config else [])]
    package, kind = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    quoted = json.dumps(name, ensure_ascii=False)
    parts = [
        "---\n" + "".join(f"{key}: {_yaml(value)}\n" for key, value in head.items()) + "---\n",
        f"# {name}\n",
        f"Written by cgrpo_jax {cgrpo_jax.__version__}"
        + (f" after iteration {step} of a run of its `train`" if config else "")
        + f", weights in {dtype}.\n",
        f"```python\nfrom {package} import {kind}\nfrom transformers import AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})\nmodel = {kind}.from_pretrained({quoted})\n```\n",
    ]
    if summary is not None:
        parts += ["## Results of the run\n", f"```json\n{json.dumps(summary, indent=2)}\n```\n"]
    if config:
        parts += ["## Training configuration\n", f"```json\n{json.dumps(config, indent=2)}\n```\n"]
    return "\n".join(parts)


def _yaml(value: str | list[str]) -> str:
    """Returns a value as YAML, of which JSON is a part."""
    return json.dumps(
        [_printable(one) for one in value] if isinstance(value, list) else _printable(value), ensure_ascii=False
    )


def _printable(text: str) -> str:
    """Returns a text without what YAML allows nowhere, such as the undecodable bytes of a file's name."""
    return "".join(character if character.isprintable() else " " for character in text)
