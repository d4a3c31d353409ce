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
from collections.abc import Callable, Iterator

import jax
import ml_collections

from cgrpo_jax import (
    assemble,
    checkpoint,
    cli,
    families,
    hf,
    hf_export,
    journal,
    lora,
    model_card,
    model_files,
    runtime,
    sharding,
    writing,
)
from cgrpo_jax import model as model_lib
from cgrpo_jax.errors import UserError
from cgrpo_jax.rundir import RunDir
from cgrpo_jax.tokenizer import load_tokenizer, read_json

_WAYS = "--from_hf and --to, --from and --to_hf, or --from and --to_peft"
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
    max_shard_gb: float,
    distributed: bool,
) -> None:
    """Converts in the one way that the given flags name."""
    given = {"from_hf": from_hf, "to": to, "from": from_, "to_hf": to_hf, "to_peft": to_peft}
    way = tuple(name for name, value in given.items() if value)
    if way not in (("from_hf", "to"), ("from", "to_hf"), ("from", "to_peft")):
        raise UserError(
            f"can't tell what to convert from {', '.join(f'--{n}' for n in way) or 'nothing'}; give {_WAYS}."
        )
    for name, value, ways in (
        ("dtype", dtype, ("to", "to_hf")),
        ("step", step, ("to_hf", "to_peft")),
        ("base", base, ("to_hf",)),
    ):
        if value is not None and way[1] not in ways:
            raise UserError(f"--{name} means nothing to --{way[1]}; leave it out.")
    if dtype is not None and dtype not in families.DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; use one of {', '.join(families.DTYPES)}.")
    if to and dtype == "float16":
        raise UserError("--dtype float16 may lack the values that training needs; use float32 or bfloat16.")
    if not max_shard_gb > 0:
        raise UserError(f"--max_shard_gb {max_shard_gb} holds nothing; use a positive size, such as 5.")
    runtime.start()
    if distributed:
        runtime.start_distributed()
    if from_hf:
        import_hf(pathlib.Path(from_hf), pathlib.Path(to), dtype=dtype or "float32")
        _say(f"wrote {to}; train from it with --config.model.init={to}")
    elif to_hf:
        export_hf(
            pathlib.Path(from_), pathlib.Path(to_hf), dtype=dtype, step=step, base=base,
            max_shard_bytes=int(max_shard_gb * 1e9),
        )  # fmt: skip
        _say(f"wrote {to_hf}; load it with transformers.AutoModelForCausalLM.from_pretrained({to_hf!r})")
    else:
        export_peft(pathlib.Path(from_), pathlib.Path(to_peft), step=step)
        _say(f"wrote {to_peft}; load it with peft.PeftModel.from_pretrained(base, {to_peft!r})")


def import_hf(source: pathlib.Path, target: pathlib.Path, *, dtype: str = "float32") -> None:
    """Writes a checkpoint of a Hugging Face folder: weights in `target/checkpoints`, all else in `target/model`.

    Args:
      source: the folder.
      target: a new folder.
      dtype: of the checkpoint's weights, float32 or bfloat16; training keeps float32 ones.

    Raises:
      UserError: a file is missing or damaged, the model is not supported, or `target` exists or can't be written.
    """
    with runtime.agree(f"reading {source}"):
        config = families.read_config(source)
        tokenizer = load_tokenizer(source)
        hf.check_vocab(tokenizer, config)
        weights = hf.Weights(source, config)
    with writing.new_folder(target) as folder:
        with writing.by_one(folder) as writes:
            if writes:
                model_files.write(folder / "model", config, tokenizer, source=source, tokenizer_source=source)
        with runtime.agree(f"reading {source}"), _bar(config, "reading") as bar:
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
    with runtime.agree(f"reading {source}"):
        run = _run(source)
        config = families.read_config(run.model)
        dtype = dtype or model_files.stored_dtype(run.model)
        weights = checkpoint.SavedWeights(run.path, step=step)
        read = _reader(run, config, weights, base=base)
        card = model_card.card(run, target.name, step=weights.step, dtype=dtype, adapter=False)
    with writing.new_folder(target) as folder:
        with writing.by_one(folder) as writes:
            if writes:
                model_files.copy(run.model, folder, config, dtype=dtype)
                (folder / "README.md").write_text(card, encoding="utf-8")
        with _bar(config, "writing") as bar:
            hf_export.save_params(folder, config, read, dtype=dtype, max_shard_bytes=max_shard_bytes, progress=bar)


def export_peft(source: pathlib.Path, target: pathlib.Path, *, step: int | None = None) -> None:
    """Writes the adapters of a LoRA run as a folder that peft loads.

    Args:
      source: the run's folder.
      target: a new folder.
      step: which checkpoint; the newest by default.

    Raises:
      UserError: the run trained all weights, its base is not a folder that peft could load, or as `export_hf`.
    """
    with runtime.agree(f"reading {source}"):
        run = _run(source)
        config = families.read_config(run.model)
        weights = checkpoint.SavedWeights(run.path, step=step)
        settings = _lora_settings(run, weights)
        if settings is None:
            raise UserError(f"{source} trained all weights, so it has no adapters; export it with --to_hf.")
        weights.check(lora.adapter_shapes(config, settings))
        trained = ml_collections.ConfigDict(read_json(run.config))
        if assemble.keeps_base(trained) or trained.model.init:
            raise UserError(f"the base of {source} is in no Hugging Face folder; export it merged, with --to_hf.")
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        layers = {name.removeprefix("layers."): weights.read(name, here) for name in weights.shapes}
        card = model_card.card(run, target.name, step=weights.step, dtype="float32", adapter=True)
    with writing.new_folder(target) as folder, writing.by_one(folder) as writes:
        if writes:
            lora.write_peft(folder, {"layers": layers}, settings, base_name=trained.model.folder)
            model_files.copy_tokenizer(run.model, folder)
            (folder / "README.md").write_text(card, encoding="utf-8")


# --- reading a run ------------------------------------------------------------------------------------------------


def _run(path: pathlib.Path) -> RunDir:
    """Returns the run, or converted checkpoint, that a path means; its `checkpoints` folder means it too."""
    run = RunDir(path.parent if path.name == "checkpoints" else path)
    if not run.checkpoints.is_dir():
        raise UserError(f"{path} holds no checkpoints; give the --workdir of a run, or a converted checkpoint.")
    if not run.model.is_dir():
        raise UserError(f"{run.path} has no folder model, which says what model its checkpoints are of; restore it.")
    return run


def _lora_settings(run: RunDir, weights: checkpoint.SavedWeights) -> lora.LoraSettings | None:
    """Returns the settings of a checkpoint's adapters; None where it holds whole weights."""
    if "embed" in weights.shapes:
        return None
    settings = read_json(run.config)["lora"]
    return lora.LoraSettings(settings["rank"], settings["alpha"], tuple(settings["targets"]))


def _reader(
    run: RunDir, config: model_lib.ModelConfig, weights: checkpoint.SavedWeights, *, base: str | None
) -> Callable[[tuple[str, ...]], jax.Array]:
    """Returns what reads a parameter of a checkpoint onto all devices, its adapter merged if it has one.

    All processes must read together; where one can't, all raise a `UserError`.
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
        read = _base(run, config, base, step=step)

    def read_together(path: tuple[str, ...]) -> jax.Array:
        name, halves = ".".join(path), ()
        with runtime.agree(f"reading {run.path}"):
            weight = read(path, hf.at(shardings, path))
            if settings is not None and f"{name}_lora_a" in weights.shapes:
                halves = [weights.read(f"{name}_lora_{half}", whole) for half in "ab"]
        # Not within: devices may have to exchange for it, and those of a process that failed would not come.
        return lora.merge_one(weight, *halves, settings.scale) if halves else weight

    return read_together


def _base(run: RunDir, config: model_lib.ModelConfig, base: str | None, *, step: int | None) -> _Read:
    """Returns what reads the weights that a run's adapters belong to; `step` is theirs in `model.init`."""
    trained = ml_collections.ConfigDict(read_json(run.config))
    kept = assemble.keeps_base(trained)
    folder = pathlib.Path(base or (run.base if kept else trained.model.init or trained.model.folder))
    if not folder.is_dir():
        raise UserError(f"the adapters' base {folder} does not exist; name the folder that now holds it with --base.")
    if (folder / "config.json").is_file() and not (folder / "checkpoints").is_dir():
        weights = hf.Weights(folder, config)
        return lambda path, placed: weights.read(path, sharding=placed)
    return _saved(checkpoint.SavedWeights(folder, step=step), config)


def _saved(weights: checkpoint.SavedWeights, config: model_lib.ModelConfig) -> _Read:
    """Returns what reads whole weights from a checkpoint."""
    weights.check(model_lib.param_shapes(config))
    return lambda path, placed: weights.read(".".join(path), placed)


def _shardings(config: model_lib.ModelConfig) -> dict:
    """Spreads every parameter over all devices."""
    mesh = sharding.make_mesh()
    return sharding.param_shardings(model_lib.logical_axes(config), model_lib.param_shapes(config), mesh)


@contextlib.contextmanager
def _bar(config: model_lib.ModelConfig, what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives a `progress` that draws a bar, on process 0."""
    total = model_lib.num_params(config)
    hidden = jax.process_index() > 0
    with journal.progress_bar(total=total, desc=what, unit="param", unit_scale=True, disable=hidden) as bar:
        yield lambda done, total: bar.update(done - bar.n)


def _say(text: str) -> None:
    if jax.process_index() == 0:
        sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    cli.run(
        main,
        flags={
            "from_hf": cli.Flag("Hugging Face model folder to read"),
            "to": cli.Flag("checkpoint folder to write"),
            "from": cli.Flag("folder of a run, or of a converted checkpoint, to read"),
            "to_hf": cli.Flag("Hugging Face model folder to write"),
            "to_peft": cli.Flag("adapter folder to write"),
            "dtype": cli.Flag(
                "float32, bfloat16, for --to_hf also float16 (default: --to, float32; --to_hf, as given)"
            ),
            "step": cli.Flag("which checkpoint of the run; the newest by default", kind=int),
            "base": cli.Flag("folder of the weights that adapters belong to, if it has moved"),
            "max_shard_gb": cli.Flag("size of a safetensors file, in 10^9 bytes", kind=float, default=5.0),
            "distributed": cli.Flag("one of several processes that convert together", kind=bool, default=False),
        },
    )
