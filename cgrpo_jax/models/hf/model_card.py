"""The model card of an exported folder, README.md: what it is, how to load it, how it was trained, what it reached."""

import json
import pathlib

import cgrpo_jax
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime.json_files import read_json, read_json_object


def card(run: RunDir, name: str, *, step: int, dtype: str, adapter: bool) -> str:
    """Returns the text of a card.

    Args:
      run: the run, or converted checkpoint, that the folder is of.
      name: what to call the model.
      step: the checkpoint's.
      dtype: of the weights.
      adapter: whether the folder holds adapters alone, for peft.

    Raises:
      UserError: the run's `config.json` or `summary.json` can't be read.
    """
    restore = "restore it from a copy, or remove it"
    trained = read_json_object(run.config, broken=restore) if run.config.is_file() else {}
    start = trained.get("model", {})
    if trained and not (isinstance(start, dict) and isinstance(start.get("folder"), str)):
        raise UserError(f"{run.config} is not the configuration of a run; {restore}.")
    name = " ".join(_printable(name).split())
    head: dict = {"library_name": "peft" if adapter else "transformers", "pipeline_tag": "text-generation"}
    if trained and start["folder"]:
        head["base_model"] = pathlib.Path(start["folder"]).name
    head["tags"] = ["cgrpo_jax", *(["critique-grpo", "reinforcement-learning"] if trained else [])]
    package, kind = ("peft", "AutoPeftModelForCausalLM") if adapter else ("transformers", "AutoModelForCausalLM")
    quoted = json.dumps(name, ensure_ascii=False)
    parts = [
        "---\n" + "".join(f"{key}: {_yaml(value)}\n" for key, value in head.items()) + "---\n",
        f"# {name}\n",
        f"Written by cgrpo_jax {cgrpo_jax.__version__}"
        + (f" after iteration {step} of a run of its `train`" if trained else "")
        + f", weights in {dtype}.\n",
        f"```python\nfrom {package} import {kind}\nfrom transformers import AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({quoted})\nmodel = {kind}.from_pretrained({quoted})\n```\n",
    ]
    if run.summary.is_file():
        summary = read_json(run.summary, broken=restore)
        parts += ["## Results of the run\n", f"```json\n{json.dumps(summary, indent=2)}\n```\n"]
    if trained:
        parts += ["## Training configuration\n", f"```json\n{json.dumps(trained, indent=2)}\n```\n"]
    return "\n".join(parts)


def _yaml(value: str | list[str]) -> str:
    """Returns a value as YAML, of which JSON is a part."""
    return json.dumps(
        [_printable(one) for one in value] if isinstance(value, list) else _printable(value), ensure_ascii=False
    )


def _printable(text: str) -> str:
    """Returns a text without what YAML allows nowhere, such as the undecodable bytes of a file's name."""
    return "".join(character if character.isprintable() else " " for character in text)
