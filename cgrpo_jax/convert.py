"""Converts Hugging Face model folders to checkpoints, and checkpoints, adapters merged, to Hugging Face folders.

    python -m cgrpo_jax.convert --from_hf=Qwen2.5-7B --to=checkpoints/qwen2.5-7b
    python -m cgrpo_jax.convert --from=runs/mine --to_hf=exports/mine --dtype=bfloat16
    python -m cgrpo_jax.convert --from=runs/mine --to_peft=exports/mine-adapter

A converted checkpoint is what `--config.model.init=checkpoints/qwen2.5-7b` starts from. Weights are read and written
one layer stack at a time, spread over the devices. With --distributed, several processes convert together, each running
the same command, with folders that all of them see.
"""

import contextlib
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import ml_collections

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.models import lora
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import export, load, model_card
from cgrpo_jax.models.hf import folder as folder_lib
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.runs import build_training, cli, start_weights
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import console, files, processes
from cgrpo_jax.runtime.json_files import read_json, read_json_object
from cgrpo_jax.training import checkpoint

_WAYS = "--from_hf and --to, --from and --to_hf, or --from and --to_peft"
_SHARD_GB = 5.0
FLAGS = {
    "from_hf": cli.Flag("Hugging Face model folder to read"),
    "to": cli.Flag("checkpoint folder to write"),
    "from": cli.Flag("folder of a run, or of a converted checkpoint, to read"),
    "to_hf": cli.Flag("Hugging Face model folder to write"),
    "to_peft": cli.Flag("adapter folder to write"),
    "dtype": cli.Flag("float32, bfloat16, for --to_hf also float16 (default: --to, float32; --to_hf, as given)"),
    "step": cli.Flag("which checkpoint of the run; the newest by default", kind=int),
    "base": cli.Flag("folder of the weights that adapters belong to, if it has moved"),
    "max_shard_gb": cli.Flag(f"size of a safetensors file, in 10^9 bytes (default: {_SHARD_GB})", kind=float),
    "distributed": cli.Flag("one of several processes that convert together", kind=bool, default=False),
}
# The ways of writing that a flag means something to.
_OPTIONS = {
    "dtype": ("to", "to_hf"),
    "step": ("to_hf", "to_peft"),
    "base": ("to_hf", "to_peft"),
    "max_shard_gb": ("to_hf",),
}
# Reads the parameter at a path into a given sharding.
_Read = Callable[[tuple[str, ...], jax.sharding.Sharding], jax.Array]


def main(
    from_hf: str | None,
    to: str | None,
    from_: str | None,
    to_hf: str | None,
    to_peft: str | None,
    dtype: str | None,
    step: int | None,
    base: str | None,
    max_shard_gb: float | None,
    distributed: bool,
) -> None:
    """Converts in the one way that the given flags name."""
    _check_flags(
        {"from_hf": from_hf, "to": to, "from": from_, "to_hf": to_hf, "to_peft": to_peft},
        {"dtype": dtype, "step": step, "base": base, "max_shard_gb": max_shard_gb},
    )
    processes.start(distributed=distributed)
    if from_hf:
        import_hf(pathlib.Path(from_hf), pathlib.Path(to), dtype=dtype or "float32")
        _say(f"wrote {to}; train from it with --config.model.init={to}")
    elif to_hf:
        export_hf(
            pathlib.Path(from_), pathlib.Path(to_hf), dtype=dtype, step=step, base=base,
            max_shard_bytes=int((max_shard_gb or _SHARD_GB) * 1e9),
        )  # fmt: skip
        _say(f"wrote {to_hf}; load it with transformers.AutoModelForCausalLM.from_pretrained({to_hf!r})")
    else:
        export_peft(pathlib.Path(from_), pathlib.Path(to_peft), step=step, base=base)
        _say(f"wrote {to_peft}; load it with peft.PeftModel.from_pretrained(base, {to_peft!r})")


def _check_flags(ways: Mapping[str, str | None], options: Mapping[str, Any]) -> None:
    """Refuses flags that name no way to convert, or mean nothing to it."""
    way = tuple(name for name, value in ways.items() if value)
    if way not in (("from_hf", "to"), ("from", "to_hf"), ("from", "to_peft")):
        raise UserError(
            f"can't tell what to convert from {', '.join(f'--{n}' for n in way) or 'nothing'}; give {_WAYS}."
        )
    for name, meant in _OPTIONS.items():
        if options[name] is not None and way[1] not in meant:
            raise UserError(f"--{name} means nothing to --{way[1]}; leave it out.")
    dtype, max_shard_gb = options["dtype"], options["max_shard_gb"]
    if dtype is not None and dtype not in hf_config.DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; use one of {', '.join(hf_config.DTYPES)}.")
    if way[1] == "to" and dtype == "float16":
        raise UserError("--dtype float16 may lack the values that training needs; use float32 or bfloat16.")
    if max_shard_gb is not None and not 1e-9 <= max_shard_gb <= 1e9:  # neither does nan pass
        raise UserError(f"--max_shard_gb {max_shard_gb} is no size of a file; use a positive one, such as {_SHARD_GB}.")


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
    step: int | None = None,
    base: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Writes a checkpoint as a Hugging Face folder that transformers, vLLM and others load as it is.

    Args:
      source: a run's folder, or a converted checkpoint.
      target: a new folder.
      dtype: of the weights; None: the one in which the model was given.
      step: which checkpoint; the newest by default.
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
            read = _reader(run, config, weights, opened, base=base)
            card = _card(run, target.name, step=weights.step, dtype=dtype, adapter=False)
        with files.new_folder(target) as folder:
            with files.by_one(folder) as writes:
                if writes:
                    folder_lib.copy(run.model, folder, config, dtype=dtype)
                    (folder / "README.md").write_text(card, encoding="utf-8")
            with _bar(config, "writing") as bar:
                export.save_params(folder, config, read, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=bar)


def export_peft(
    source: pathlib.Path, target: pathlib.Path, *, step: int | None = None, base: str | None = None
) -> None:
    """Writes the adapters of a LoRA run as a folder that peft loads.

    Args:
      source: the run's folder.
      target: a new folder.
      step: which checkpoint; the newest by default.
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
        trained = _trained(run)
        if start_weights.keeps_base(trained) or trained.model.init:
            raise UserError(f"the base of {source} is in no Hugging Face folder; export it merged, with --to_hf.")
        folder = _base_folder(base or trained.model.folder)
        # What the run has kept of its model says nothing of other parts that its base may have.
        multimodal = hf_config.is_multimodal(folder)
        card = _card(run, target.name, step=weights.step, dtype="float32", adapter=True)
    with files.new_folder(target) as partial, files.by_one(partial) as writes:
        if writes:
            lora.write_peft(partial, {"layers": layers}, settings, base_name=str(folder), multimodal=multimodal)
            folder_lib.copy_tokenizer(run.model, partial)
            (partial / "README.md").write_text(card, encoding="utf-8")


def _card(run: RunDir, name: str, **about) -> str:
    """Returns the model card of what a run, or a converted checkpoint, is exported to; see `model_card.card`."""
    restore = "restore it from a copy, or remove it"
    config = read_json_object(run.config, broken=restore) if run.config.is_file() else {}
    start = config.get("model", {})
    if config and not (isinstance(start, dict) and isinstance(start.get("folder"), str)):
        raise UserError(f"{run.config} is not the configuration of a run; {restore}.")
    summary = read_json(run.summary, broken=restore) if run.summary.is_file() else None
    return model_card.card(name, base=start.get("folder", ""), config=config, summary=summary, **about)


# --- reading a run ------------------------------------------------------------------------------------------------


def _run(path: pathlib.Path) -> RunDir:
    """Returns the run, or converted checkpoint, that a path means; its `checkpoints` folder means it too."""
    run = RunDir(path)
    if not run.checkpoints.is_dir() and path.resolve().name == "checkpoints":
        run = RunDir(path.resolve().parent)
    if not run.checkpoints.is_dir():
        raise UserError(f"{path} holds no checkpoints; give the --workdir of a run, or a converted checkpoint.")
    if not run.model.is_dir():
        raise UserError(f"{run.path} has no folder model, which says what model its checkpoints are of; restore it.")
    for name in ("config.json", "generation_config.json"):
        if not (run.model / name).is_file():
            raise UserError(f"{run.model} has no {name}, which tells of its model; restore it from a copy.")
    return run


def _lora_settings(run: RunDir, weights: checkpoint.SavedWeights) -> lora.LoraSettings | None:
    """Returns the settings of a checkpoint's adapters; None where it holds whole weights."""
    return None if "embed" in weights.shapes else build_training.lora_settings(_trained(run))


def _trained(run: RunDir) -> ml_collections.ConfigDict:
    """Returns the configuration of a run that trained adapters, as far as it tells what these are.

    Raises:
      UserError: `config.json` is missing, damaged, or not that of such a run.
    """
    restore = "restore it from a copy"
    given = read_json_object(run.config, missing=restore, broken=restore)
    try:
        config = ml_collections.ConfigDict(given)
        whole = config.lora.rank >= 1 and config.lora.alpha > 0 and all(t in lora.TARGETS for t in config.lora.targets)
        whole &= all(isinstance(value, str) for value in (config.model.folder, config.model.init))
        whole &= isinstance(config.warm_start.num_updates, int)
    except (AttributeError, TypeError, ValueError):
        whole = False
    if not whole:
        raise UserError(
            f"{run.config} is not the configuration of a run that trained the adapters in {run.checkpoints}; {restore}."
        )
    return config


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
        name, halves = ".".join(path), ()
        with processes.agree(f"reading {run.path}"):
            weight = read(path, load.at(shardings, path))
            if settings is not None and f"{name}_lora_a" in weights.shapes:
                halves = [weights.read(f"{name}_lora_{half}", whole) for half in "ab"]
        # Not within: devices may have to exchange for it, and those of a process that failed would not come.
        return lora.merge_one(weight, *halves, settings.scale) if halves else weight

    return read_together


def _base(
    run: RunDir, config: params_lib.ModelConfig, opened: contextlib.ExitStack, *, base: str | None, step: int | None
) -> _Read:
    """Returns what reads the weights that a run's adapters belong to; `step` is theirs in `model.init`."""
    trained = _trained(run)
    kept = start_weights.keeps_base(trained)
    folder = _base_folder(base or (run.base if kept else trained.model.init or trained.model.folder))
    if (folder / "config.json").is_file() and not (folder / "checkpoints").is_dir():
        weights = load.Weights(folder, config)
        return lambda path, placed: weights.read(path, sharding=placed)
    return _saved(opened.enter_context(checkpoint.SavedWeights(folder, step=step)), config)


def _base_folder(path: str | pathlib.Path) -> pathlib.Path:
    """Returns the folder that adapters belong to, absolute, so that it is found from elsewhere too."""
    folder = pathlib.Path(path).absolute()
    if not folder.exists():
        raise UserError(f"the adapters' base {path} does not exist; name the folder that now holds it with --base.")
    if not folder.is_dir():
        raise UserError(f"the adapters' base {path} is not a folder; name the folder that holds it with --base.")
    steps = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    if not (folder / "config.json").is_file() and not any(checkpoint.is_step(one.name) for one in steps.iterdir()):
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
        yield lambda done, total: bar.update(done - bar.n)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    cli.run(main, flags=FLAGS)
