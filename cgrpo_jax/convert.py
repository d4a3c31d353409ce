"""Converts Hugging Face model folders to checkpoints, and checkpoints, adapters merged, to Hugging Face folders.

    python -m cgrpo_jax.convert --from_hf=Qwen2.5-7B --to=checkpoints/qwen2.5-7b
    python -m cgrpo_jax.convert --from=runs/mine --to_hf=exports/mine --dtype=bfloat16
    python -m cgrpo_jax.convert --from=runs/mine --to_hf=exports/best --step=best
    python -m cgrpo_jax.convert --from=runs/mine --to_peft=exports/mine-adapter
    python -m cgrpo_jax.convert --from=runs/mine --of=critic --to_hf=exports/critic

A converted checkpoint is what `--config.model.init=checkpoints/qwen2.5-7b` starts from. Weights are read and written
one layer stack at a time, spread over the devices. With --distributed, several processes convert together, each running
the same command, with folders that all of them see.
"""

if __name__ == "__main__":  # Ctrl-C while all below is imported ends the program with one line
    from cgrpo_jax.runtime import signals

    signals.end_while_importing()

import sys
from collections.abc import Mapping
from typing import Any

import jax

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.config import DTYPES
from cgrpo_jax.runs import cli
from cgrpo_jax.runs.conversion import export_hf, export_peft, import_hf
from cgrpo_jax.runs.export_source import MODELS
from cgrpo_jax.runtime import places, processes

_WAYS = "--from_hf and --to, --from and --to_hf, or --from and --to_peft"
_SHARD_GB = 5.0
FLAGS = {
    "from_hf": cli.Flag("Hugging Face model folder to read", is_path=True, in_bucket=True),
    "to": cli.Flag("checkpoint folder to write", is_path=True, in_bucket=True, is_folder=True),
    "from": cli.Flag("folder of a run, or of a converted checkpoint, to read", is_path=True, in_bucket=True),
    "to_hf": cli.Flag("Hugging Face model folder to write", is_path=True, in_bucket=True, is_folder=True),
    "to_peft": cli.Flag("adapter folder to write", is_path=True, in_bucket=True, is_folder=True),
    "dtype": cli.Flag("float32, bfloat16, for --to_hf also float16 (default: --to, float32; --to_hf, as given)"),
    "step": cli.STEP,
    "of": cli.Flag(
        "whose weights: the policy's, or those of a critic that was trained (critic.train) (default: policy)"
    ),
    "base": cli.Flag(
        "folder of the weights that adapters belong to: if it has moved, or of a critic's the exported policy",
        is_path=True,
        in_bucket=True,
    ),
    "max_shard_gb": cli.Flag(f"size of a safetensors file, in 10^9 bytes (default: {_SHARD_GB})", kind=float),
    "distributed": cli.Flag("one of several processes that convert together", kind=bool, default=False),
}
# The ways of writing that a flag means something to.
_OPTIONS = {
    "dtype": ("to", "to_hf"),
    "step": ("to_hf", "to_peft"),
    "of": ("to_hf", "to_peft"),
    "base": ("to_hf", "to_peft"),
    "max_shard_gb": ("to_hf",),
}


def main(
    from_hf: str | None,
    to: str | None,
    from_: str | None,
    to_hf: str | None,
    to_peft: str | None,
    dtype: str | None,
    step: str | None,
    of: str | None,
    base: str | None,
    max_shard_gb: float | None,
    distributed: bool,
) -> None:
    """Converts in the one way that the given flags name."""
    _check_flags(
        {"from_hf": from_hf, "to": to, "from": from_, "to_hf": to_hf, "to_peft": to_peft},
        {"dtype": dtype, "step": step, "of": of, "base": base, "max_shard_gb": max_shard_gb},
    )
    which = cli.step_of(step)
    processes.start(distributed=distributed, command={"the command": "convert"})
    if from_hf and to:
        import_hf(places.place(from_hf), places.place(to), dtype=dtype or "float32")
        _say(f"wrote {to}; train from it with --config.model.init={to}")
    elif from_ and to_hf:
        export_hf(
            places.place(from_), places.place(to_hf), of=of or "policy", dtype=dtype, step=which, base=base,
            max_shard_bytes=int((max_shard_gb or _SHARD_GB) * 1e9),
        )  # fmt: skip
        _say(f"wrote {to_hf}; load it with transformers.AutoModelForCausalLM.from_pretrained({to_hf!r})")
    elif from_ and to_peft:
        export_peft(places.place(from_), places.place(to_peft), of=of or "policy", step=which, base=base)
        _say(f"wrote {to_peft}; load it with peft.PeftModel.from_pretrained(base, {to_peft!r})")


def _check_flags(ways: Mapping[str, str | None], options: Mapping[str, Any]) -> None:
    """Refuses flags that name no way to convert, or mean nothing to it."""
    way = tuple(name for name, value in ways.items() if value)
    if way not in (("from_hf", "to"), ("from", "to_hf"), ("from", "to_peft")):
        raise UserError(
            f"it is not clear what to convert from {', '.join(f'--{n}' for n in way) or 'nothing'}; give {_WAYS}."
        )
    for name, meant in _OPTIONS.items():
        if options[name] is not None and way[1] not in meant:
            raise UserError(f"--{name} means nothing to --{way[1]}; leave it out.")
    dtype, of, max_shard_gb = options["dtype"], options["of"], options["max_shard_gb"]
    if of is not None and of not in MODELS:
        raise UserError(f"--of {of!r} is unknown; use one of {', '.join(MODELS)}.")
    if dtype is not None and dtype not in DTYPES:
        raise UserError(f"--dtype {dtype!r} is unknown; use one of {', '.join(DTYPES)}.")
    if way[1] == "to" and dtype == "float16":
        raise UserError("--dtype float16 may lack the values that training needs; use float32 or bfloat16.")
    if max_shard_gb is not None and not 1e-9 <= max_shard_gb <= 1e9:  # neither does nan pass
        raise UserError(f"--max_shard_gb {max_shard_gb} is no size of a file; use a positive one, such as {_SHARD_GB}.")


def _say(text: str) -> None:
    if jax.process_index() == 0:
        sys.stdout.write(f"{text}\n")


if __name__ == "__main__":
    cli.run(main, flags=FLAGS)
