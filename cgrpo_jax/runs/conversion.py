"""Hugging Face folders to checkpoints that a run starts from, and what a run has trained back to such folders.

Weights pass one layer stack at a time, spread over the devices; where several processes convert together, each reads
and writes its part.
"""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import export, load, unchanged
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.runs import old_keys, sections
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import console, digests, files, local_copies, places, processes
from cgrpo_jax.runtime.json_files import read_json, read_json_object
from cgrpo_jax.training import checkpoint, checkpoint_steps
from cgrpo_jax.training.checkpoint_steps import Step

# Reads the parameter at a path into a given sharding.
_Read = Callable[[tuple[str, ...], jax.sharding.Sharding], jax.Array]
_RESTORE = "restore it from a copy"


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
            params = weights.load(dtype=dtype, shardings=_shardings(config), progress=bar)
        checkpoint.save_params(folder / "checkpoints", params)


def export_hf(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    dtype: str | None = None,
    step: Step = None,
    base: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a checkpoint as a Hugging Face folder that transformers, vLLM and others load as it is.

    Args:
      source: a run's folder, or a converted checkpoint.
      target: a new folder.
      dtype: of the weights; None: the one in which the model was given.
      step: which checkpoint, as for `checkpoint_steps.find`; the newest by default.
      base: folder of the weights that adapters are merged into; None: where the run says that it took them from.
      max_shard_bytes: of tensors in a file.

    Raises:
      UserError: there is no such checkpoint, it is damaged, or `target` exists or can't be written.
    """
    with contextlib.ExitStack() as opened:
        with processes.agree(f"reading {source}"):
            run = _run(source)
            config = hf_config.read_config(run.model)
            dtype = dtype or folder_lib.stored_dtype(run.model)
            weights = opened.enter_context(checkpoint.SavedWeights(run.path, step=step))
            if weights.has_critic:
                console.say(
                    f"the policy of {source} is exported; its critic, with weights of its own, stays in the run"
                )
            read = _reader(run, config, weights, opened, base=base)
            about = _about(run, step=weights.step, dtype=dtype, adapter=False)
            _check_target(target)
        with files.new_folder(target) as partial, files.filled_folder(partial, last=digests.FILE) as folder:
            with files.by_one(folder) as writes:
                if writes:
                    folder_lib.export(run.model, folder, config, dtype=dtype)
                    _write_card(folder, target.name, about)
            with _bar(config, "writing") as bar:
                export.save_params(folder, config, read, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=bar)
            with files.by_one(folder) as writes:
                if writes:
                    unchanged.seal(folder)


def export_peft(source: pathlib.Path, target: pathlib.Path, *, step: Step = None, base: str | None = None) -> None:
    """Writes the adapters of a LoRA run as a folder that peft loads.

    Args:
      source: the run's folder.
      target: a new folder.
      step: which checkpoint, as for `checkpoint_steps.find`; the newest by default.
      base: the Hugging Face folder that the run started from, if it has moved.

    Raises:
      UserError: the run trained all weights, its base is not a folder that peft could load, or as `export_hf`.
    """
    with processes.agree(f"reading {source}"):
        run = _run(source)
        config = hf_config.read_config(run.model)
        with checkpoint.SavedWeights(run.path, step=step) as weights:
            settings = _lora_settings(run, weights)
            if settings is None:
                raise UserError(f"{source} trained all weights, so it has no adapters; export it with --to_hf.")
            weights.check(lora.adapter_shapes(config, settings))
            here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
            layers = {name.removeprefix("layers."): weights.read(name, here) for name in weights.shapes}
        trained = _adapters(run)
        if trained.keeps_base or trained.init:
            raise UserError(f"the base of {source} is in no Hugging Face folder; export it merged, with --to_hf.")
        folder = _base_folder(base or trained.folder)
        # What the run has kept of its model says nothing of other parts that its base may have.
        multimodal = hf_config.is_multimodal(local_copies.local(folder, suffixes=local_copies.DESCRIPTION))
        about = _about(run, step=weights.step, dtype="float32", adapter=True)
    with files.new_folder(target) as partial, files.by_one(partial) as writes:
        if writes:
            with files.filled_folder(partial, last=digests.FILE) as made:
                lora.write_peft(made, {"layers": layers}, settings, base_name=str(folder), multimodal=multimodal)
                folder_lib.export_tokenizer(run.model, made)
                _write_card(made, target.name, about)
                unchanged.seal(made)


def _check_target(target: pathlib.Path) -> None:
    """Checks that processes can write into the files of a folder together, if there are several."""
    if jax.process_count() > 1 and places.is_bucket(target):
        raise UserError(
            f"--to_hf {target}: several processes write parts of one file, which a bucket can't take; give a folder on "
            "a disk that they share, or convert with one process."
        )


def _about(run: RunDir, **about) -> dict[str, Any]:
    """Returns what the model card says of a run, or of a converted checkpoint, that is exported."""
    restore = f"{_RESTORE}, or remove it"
    config = read_json_object(run.config, broken=restore) if run.config.is_file() else {}
    start = config.get("model", {})
    if config and not (isinstance(start, dict) and isinstance(start.get("folder"), str)):
        raise UserError(f"{run.config} is not the configuration of a run; {restore}.")
    summary = read_json(run.summary, broken=restore) if run.summary.is_file() else None
    config = old_keys.translate(config)
    prompts = config.get("prompts")
    given = prompts.get("template_arguments") if isinstance(prompts, dict) else None
    arguments = sections.template_arguments(given) if isinstance(given, str) else {}
    return about | {
        "base": start.get("folder", ""),
        "config": config,
        "summary": summary,
        "template_arguments": arguments,
    }


def _write_card(folder: pathlib.Path, name: str, about: dict[str, Any]) -> None:
    (folder / "README.md").write_text(folder_lib.model_card(name, folder=folder, **about), encoding="utf-8")


# --- reading a run ------------------------------------------------------------------------------------------------


def _run(path: pathlib.Path) -> RunDir:
    """Returns the run, or converted checkpoint, that a path means; its `checkpoints` folder means it too."""
    run = RunDir(path)
    if not run.checkpoints.is_dir() and run.path.resolve().name == "checkpoints":
        run = RunDir(run.path.resolve().parent)
    if not run.checkpoints.is_dir():
        raise UserError(f"{path} holds no checkpoints; give the --workdir of a run, or a converted checkpoint.")
    if not run.model.is_dir():
        raise UserError(f"{run.path} has no folder model, which says what model its checkpoints are of; restore it.")
    for name in ("config.json", "generation_config.json"):
        if not (run.model / name).is_file():
            raise UserError(f"{run.model} has no {name}, which says what model it is; {_RESTORE}.")
    run.model = local_copies.local(run.model)
    return run


@dataclasses.dataclass(frozen=True)
class _Adapters:
    """What the configuration of a run that trained adapters says of them.

    Attributes:
      settings: which projections have one, and how strong they are.
      folder, init: the Hugging Face folder, or the checkpoint, that the run started from; empty where there was none.
      warmed_up: the run had trained the weights that they belong to before it began with them.
    """

    settings: lora.LoraSettings
    folder: str
    init: str
    warmed_up: bool

    @property
    def keeps_base(self) -> bool:
        """Whether the run's own folder has the weights that they belong to; see `start_weights.keeps_base`."""
        return self.warmed_up or not (self.init or self.folder)


def _lora_settings(run: RunDir, weights: checkpoint.SavedWeights) -> lora.LoraSettings | None:
    """Returns the settings of a checkpoint's adapters; None where it holds whole weights."""
    return None if "embed" in weights.shapes else _adapters(run).settings


def _adapters(run: RunDir) -> _Adapters:
    """Reads what a run's `config.json` says of the adapters that it trained.

    Raises:
      UserError: the file is missing, damaged, or not that of such a run.
    """
    given = read_json_object(run.config, missing=_RESTORE, broken=_RESTORE)
    try:
        rank, alpha, targets = (given["lora"][key] for key in ("rank", "alpha", "targets"))
        folder, init, num_updates = given["model"]["folder"], given["model"]["init"], given["warm_start"]["num_updates"]
        whole = rank >= 1 and alpha > 0 and all(target in lora.TARGETS for target in targets)
        whole &= isinstance(folder, str) and isinstance(init, str) and isinstance(num_updates, int)
        if whole:
            return _Adapters(lora.LoraSettings(rank, alpha, tuple(targets)), folder, init, bool(num_updates))
    except (KeyError, TypeError, ValueError):  # a section or a key is missing, or another thing than it must be
        pass
    raise UserError(
        f"{run.config} is not the configuration of a run that trained the adapters in {run.checkpoints}; {_RESTORE}."
    )


def _reader(
    run: RunDir,
    config: params_lib.ModelConfig,
    weights: checkpoint.SavedWeights,
    opened: contextlib.ExitStack,
    *,
    base: str | None,
) -> Callable[[tuple[str, ...]], jax.Array]:
    """Returns what reads a parameter of a checkpoint onto all devices, its adapter merged if it has one.

    All processes must read together; where one can't, all raise a `UserError`. `opened` closes what it opens.
    """
    shardings = _shardings(config)
    whole = jax.sharding.NamedSharding(sharding.make_mesh(), jax.sharding.PartitionSpec())
    settings = _lora_settings(run, weights)
    if settings is None:
        if base:
            raise UserError(f"{run.path} holds whole weights, no adapters; leave --base out.")
        read = _saved(weights, config)
    else:
        weights.check(lora.adapter_shapes(config, settings))
        step = checkpoint.read_extra(run.checkpoints, step=weights.step).get("base_step")
        read = _base(run, config, opened, base=base, step=step)

    def read_together(path: tuple[str, ...]) -> jax.Array:
        name, adapter = ".".join(path), None
        with processes.agree(f"reading {run.path}"):
            weight = read(path, load.at(shardings, path))
            if settings is not None and f"{name}_lora_a" in weights.shapes:
                halves = [weights.read(f"{name}_lora_{half}", whole) for half in "ab"]
                adapter = (*halves, settings.scale)
        # Not within: devices may have to exchange for it, and those of a process that failed would not come.
        return weight if adapter is None else lora.merge_one(weight, *adapter)

    return read_together


def _base(
    run: RunDir, config: params_lib.ModelConfig, opened: contextlib.ExitStack, *, base: str | None, step: int | None
) -> _Read:
    """Returns what reads the weights that a run's adapters belong to; `step` is theirs in `model.init`."""
    trained = _adapters(run)
    folder = _base_folder(base or (run.base if trained.keeps_base else trained.init or trained.folder))
    if (folder / "config.json").is_file() and not (folder / "checkpoints").is_dir():
        weights = load.Weights(local_copies.local(folder, suffixes=local_copies.MODEL), config)
        return lambda path, placed: weights.read(path, sharding=placed)
    return _saved(opened.enter_context(checkpoint.SavedWeights(folder, step=step)), config)


def _base_folder(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder that adapters belong to, absolute, so that it is found from elsewhere too."""
    folder = places.place(path).absolute()
    if not folder.exists():
        raise UserError(f"the adapters' base {path} does not exist; name the folder that now holds it with --base.")
    if not folder.is_dir():
        raise UserError(f"the adapters' base {path} is not a folder; name the folder that holds it with --base.")
    steps = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if not (folder / "config.json").is_file() and not any(
        checkpoint_steps.is_step(one.name) for one in steps.iterdir()
    ):
        raise UserError(
            f"the adapters' base {path} is no Hugging Face folder and holds no checkpoint; name the folder that holds "
            "it with --base."
        )
    return folder


def _saved(weights: checkpoint.SavedWeights, config: params_lib.ModelConfig) -> _Read:
    """Returns what reads whole weights from a checkpoint."""
    weights.check(params_lib.param_shapes(config))
    return lambda path, placed: weights.read(".".join(path), placed)


def _shardings(config: params_lib.ModelConfig) -> dict:
    """Spreads every parameter over all devices."""
    mesh = sharding.make_mesh()
    return sharding.param_shardings(params_lib.logical_axes(config), params_lib.param_shapes(config), mesh)


@contextlib.contextmanager
def _bar(config: params_lib.ModelConfig, what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a `progress` that draws a bar, on process 0."""
    total = params_lib.num_params(config)
    with console.progress_bar(total=total, desc=what, unit="param", unit_scale=True) as bar:

        def progress(done: int, total: int) -> None:
            bar.update(done - bar.n)

        yield progress
