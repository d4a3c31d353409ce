"""Updates of `cgrpo finetune` in a process of their own, for finetune_speed.py: their seconds and what they learnt.

    python tests/benchmarks/finetune_steps.py --json=FILE --model=FOLDER --rows=chats.jsonl [--per_update=16]
        [--pack=1,512] [--remat=none] [--warmup=2] [--updates=8]

It is configs/sft.py in the command's own `main`, metrics, trackers and first checkpoint included. The clock runs from
the end of the last update that warms up to the end of the last one: what lies between two updates is in it, as rows
that are drawn and packed, and a line of metrics. Tokens are those of the chats, prompts and targets, without padding.
"""

import argparse
import contextlib
import io
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Sequence

from grpo_step import peak_gib

from cgrpo_jax import finetune
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runtime import processes
from configs import sft


def config_of(given: argparse.Namespace) -> Config:
    """Returns the configuration of the run: configs/sft.py, with the lengths and the number of updates asked for."""
    c, (rows, length) = sft.get_config(), map(int, given.pack.split(","))
    c.update_from_flattened_dict(
        {
            "model.folder": str(given.model),
            "data.train": str(given.rows),
            "finetune.epochs": 0,
            "num_iterations": given.warmup + given.updates,
            "finetune.rows_per_update": given.per_update,
            "max_prompt_length": length,
            "max_response_length": length,
            "packing.rows": rows,
            "packing.length": length,
            "optimizer.schedule": "constant",
            "optimizer.warmup_updates": 0,
            "compute.remat": given.remat,
        }
    )
    return config_lib.freeze(c)


def timed(config: Config, workdir: str, *, warmup: int) -> dict:
    """Fine-tunes, and returns what the updates after the first `warmup` took and learnt."""
    ends, learnt, compiled = [], [], []
    end_update = finetune.Run.end_update

    def noted(run, number, batch, updates) -> None:
        end_update(run, number, batch, updates)
        rows = [row for unit in batch for row in unit]
        whole = sum(len(row.context_ids) + len(row.target_ids) for row in rows)
        learnt.append((whole, *(updates.stats[0][name] for name in ("targets", "packed_positions", "nll_loss"))))
        compiled.append(processes.compilations())
        ends.append(time.monotonic())

    finetune.Run.end_update = noted
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            finetune.main(config, workdir)
    finally:
        finetune.Run.end_update = end_update
    tokens, targets, positions, _ = (sum(column) for column in zip(*learnt[warmup:], strict=True))
    return {
        "seconds": ends[-1] - ends[warmup - 1],
        "updates": len(ends) - warmup,
        "tokens": tokens,
        "targets": targets,
        "positions": positions,
        "loss": learnt[0][-1],
        "compiled": compiled[-1] - compiled[warmup - 1],
        "peak_gib": peak_gib(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=pathlib.Path, required=True)
    parser.add_argument("--per_update", type=int, default=16)
    parser.add_argument("--pack", default="1,512")
    parser.add_argument("--remat", default="none")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--updates", type=int, default=8)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as workdir:
        found = timed(config_of(given), workdir, warmup=given.warmup)
    given.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
