"""Hugging Face folders to checkpoints that a run starts from, and what a run has trained back to such folders.

Weights pass one layer stack at a time, spread over the devices; where several processes convert together, each reads
and writes its part.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from cgrpo_jax.critiques import texts
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import export, load, unchanged
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.runs import export_source, old_keys, sections
from cgrpo_jax.runs.export_source import RESTORE, ExportSource
from cgrpo_jax.runtime import console, digests, files, local_copies, places, processes
from cgrpo_jax.runtime.json_files import read_json, read_json_object
from cgrpo_jax.training import checkpoint
from cgrpo_jax.training.checkpoint_steps import Step

# The prompt of a critic by what it sees (critic.sees): its key of the section `prompts`, and what it is by default.
_CRITIQUE_PROMPTS = {
    "nothing": ("critique", texts.CRITIQUE_PROMPT),
    "answer": ("critique_with_answer", texts.CRITIQUE_PROMPT_WITH_ANSWER),
    "solution": ("critique_with_solution", texts.CRITIQUE_PROMPT_WITH_SOLUTION),
}


def import_hf(source: pathlib.Path, target: pathlib.Path, *, dtype: str = "float32") -> None:
    """Writes a checkpoint of a Hugging Face folder: weights in `target/checkpoints`, all else in `target/model`.

    Args:
      source: the folder.
      target: a new folder.
      dtype: of the checkpoint's weights, float32 or bfloat16; training keeps float32 ones.

    Raises:
      UserError: a file is missing or damaged, the model is not supported, or `target` exists or can't be written.
    """
    with processes.agree(f"reading {source}"):
        source = local_copies.local(source, suffixes=local_copies.MODEL)
        config = hf_config.read_config(source)
        tokenizer = load_tokenizer(source)
        load.check_vocab(tokenizer, config)
        weights = load.Weights(source, config)
    with files.new_folder(target) as folder:
        with files.by_one(folder) as writes:
            if writes:
                folder_lib.write(folder / "model", config, tokenizer, source=source, tokenizer_source=source)
        with processes.agree(f"reading {source}"), _bar(config, "reading") as bar:
            params = weights.load(dtype=dtype, shardings=export_source.spread(config), progress=bar)
        checkpoint.save_params(folder / "checkpoints", params)


def export_hf(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    of: str = "policy",
    dtype: str | None = None,
    step: Step = None,
    base: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a checkpoint as a Hugging Face folder that transformers, vLLM and others load as it is.

    Args:
      source: a run's folder, or a converted checkpoint.
      target: a new folder.
      of: whose weights, a name of `export_source.MODELS`. Of a critic that writes with the policy's own these.
      dtype: of the weights; None: the one in which the model was given.
      step: which checkpoint, as for `checkpoint_steps.find`; the newest by default.
      base: folder of the weights that adapters are merged into; None: where the run says that it took them from.
      max_shard_bytes: of tensors in a file.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or `target` exists or can't be written.
    """
    with contextlib.ExitStack() as opened:
        with processes.agree(f"reading {source}"):
            found = export_source.open_source(source, opened, of=of, step=step)
            config = found.config
            dtype = dtype or folder_lib.stored_dtype(found.folder)
            _say_whose(found, source)
            read = export_source.reader(found, opened, base=base)
            about = _about(found, dtype=dtype, adapter=False)
            _check_target(target)
        with files.new_folder(target) as partial, files.filled_folder(partial, last=digests.FILE) as folder:
            with files.by_one(folder) as writes:
                if writes:
                    folder_lib.export(found.folder, folder, config, dtype=dtype)
                    _write_card(folder, target.name, about)
            with _bar(config, "writing") as bar:
                export.save_params(folder, config, read, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=bar)
            with files.by_one(folder) as writes:
                if writes:
                    unchanged.seal(folder)


def export_peft(
    source: pathlib.Path, target: pathlib.Path, *, of: str = "policy", step: Step = None, base: str | None = None
) -> None:
    """Writes adapters as a folder that peft loads: of a run that trained no other weights, or of its critic.

    Args:
      source: the run's folder.
      target: a new folder.
      of: whose, a name of `export_source.MODELS`.
      step: which checkpoint, as for `checkpoint_steps.find`; the newest by default.
      base: the Hugging Face folder that the run started from, if it has moved; of a critic's adapter the exported
        policy of the same checkpoint.

    Raises:
      UserError: all weights were trained, their base is not a folder that peft could load, or as `export_hf`.
    """
    with processes.agree(f"reading {source}"), contextlib.ExitStack() as opened:
        found = export_source.open_source(source, opened, of=of, step=step)
        _say_whose(found, source)
        settings, weights = found.adapters, found.weights
        folder = export_source.peft_base(found, base)
        assert settings, "it has a base"
        weights.check(lora.adapter_shapes(found.config, settings))
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        layers = {name.removeprefix("layers."): weights.read(name, here) for name in weights.shapes}
        # What the run has kept of its model says nothing of other parts that its base may have.
        multimodal = hf_config.is_multimodal(local_copies.local(folder, suffixes=local_copies.DESCRIPTION))
        about = _about(found, dtype="float32", adapter=True)
        if found.policy is not None:  # not what training started from
            about["base"] = str(folder)
    with files.new_folder(target) as partial, files.by_one(partial) as writes:
        if writes:
            with files.filled_folder(partial, last=digests.FILE) as made:
                lora.write_peft(made, {"layers": layers}, settings, base_name=str(folder), multimodal=multimodal)
                folder_lib.export_tokenizer(found.folder, made)
                _write_card(made, target.name, about)
                unchanged.seal(made)


def _say_whose(found: ExportSource, source: pathlib.Path) -> None:
    """Says whose weights are exported, where a run has trained a critic too."""
    if found.shares:
        console.say(f"the critic of {source} is its policy: what is exported are the weights of both")
    elif not found.is_critic and found.weights.has_critic:
        console.say(f"the policy of {source} is exported; its critic has weights of its own, for --of=critic")


def _check_target(target: pathlib.Path) -> None:
    """Checks that processes can write into the files of a folder together, if there are several."""
    if jax.process_count() > 1 and places.is_bucket(target):
        raise UserError(
            f"--to_hf {target}: several processes write parts of one file, which a bucket can't take; give a folder on "
            "a disk that they share, or convert with one process."
        )


def _about(found: ExportSource, *, dtype: str, adapter: bool) -> dict[str, Any]:
    """Returns what the model card says of a run, or of a converted checkpoint, that is exported."""
    run, restore = found.run, f"{RESTORE}, or remove it"
    config = read_json_object(run.config, broken=restore) if run.config.is_file() else {}
    start = config.get("model", {})
    if config and not (isinstance(start, dict) and isinstance(start.get("folder"), str)):
        raise UserError(f"{run.config} is not the configuration of a run; {RESTORE}.")
    summary = read_json(run.summary, broken=restore) if run.summary.is_file() else None
    config = old_keys.translate(config)
    prompts, base = config.get("prompts"), start.get("folder", "")
    prompts = prompts if isinstance(prompts, dict) else {}
    given, asked = prompts.get("template_arguments"), prompts.get("question")
    if found.is_critic:
        critic = config["critic"]
        base = str(critic.get("folder") or "") if found.kind == "model" else base
        name, default = _CRITIQUE_PROMPTS.get(critic.get("sees"), _CRITIQUE_PROMPTS["nothing"])
        given, asked = critic.get("template_arguments") or given, prompts.get(name) or default
    arguments = sections.template_arguments(given) if isinstance(given, str) else {}
    return {
        "step": found.weights.step,
        "dtype": dtype,
        "adapter": adapter,
        "base": base,
        "critic": found.is_critic,
        "asked": str(asked or "{question}"),
        "config": config,
        "summary": summary,
        "template_arguments": arguments,
    }


def _write_card(folder: pathlib.Path, name: str, about: dict[str, Any]) -> None:
    (folder / "README.md").write_text(folder_lib.model_card(name, folder=folder, **about), encoding="utf-8")


@contextlib.contextmanager
def _bar(config: params_lib.ModelConfig, what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a `progress` that draws a bar, on process 0."""
    total = params_lib.num_params(config)
    with console.progress_bar(total=total, desc=what, unit="param", unit_scale=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done - bar.n)

        yield progress
