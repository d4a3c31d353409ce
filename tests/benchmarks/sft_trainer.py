"""Updates of TRL's SFTTrainer in a process of their own, for finetune_speed.py: their seconds and what they learnt.

    python tests/benchmarks/sft_trainer.py --json=FILE --model=FOLDER --rows=chats.jsonl --mode=grouped
        [--per_update=16] [--packed=3328] [--warmup=2] [--updates=8] [--threads=2]

It needs TRL, torch and transformers, and nothing of this package. Settings, where they are not the trainer's own:
float32, no gradient checkpointing, SDPA, learning rate 1e-5 without a schedule, b2 0.95, the fused AdamW, metrics at
every update, no checkpoint. The loss is of completions alone, which TRL's head computes without the prompts' logits.

    padded    an update's chats are drawn at random, and padded to the longest of them
    grouped   the same of chats of about one length (`train_sampling_strategy="group_by_length"`): hardly any padding
    packed    chats lie in one row of `--packed` tokens (`packing=True`, best fit), without padding; attention is kept
              within each by a mask, since a processor has no flash attention

The clock runs from the end of the last update that warms up to the end of the last one. Tokens are as TRL counts them,
without padding; a chat has one more than ours, the line end after its last turn.
"""

import argparse
import json
import os
import pathlib
import resource
import sys
import tempfile
import time
from collections.abc import Sequence

MODES = {
    "padded": {},
    "grouped": {"train_sampling_strategy": "group_by_length"},
    "packed": {"packing": True, "packing_strategy": "bfd"},
}


def rows_of(path: pathlib.Path):
    """Returns the chats of a file as prompts with completions."""
    import datasets

    chats = [json.loads(line)["messages"] for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    return datasets.Dataset.from_list([{"prompt": chat[:-1], "completion": chat[-1:]} for chat in chats])


def settings_of(given: argparse.Namespace, folder: str):
    """Returns the trainer's settings, as this module's first lines have them."""
    from trl.trainer.sft_config import SFTConfig

    packs = given.mode == "packed"
    return SFTConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=1 if packs else given.per_update,
        max_length=given.packed if packs else None,
        max_steps=given.warmup + given.updates,
        learning_rate=1e-5,
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        dataloader_pin_memory=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **MODES[given.mode],
    )


def measure(given: argparse.Namespace, folder: str) -> dict:
    """Trains, and returns what the updates after the first `warmup` took and learnt."""
    import datasets
    import torch
    import transformers
    import trl
    from trl.trainer.sft_trainer import SFTTrainer

    torch.set_num_threads(given.threads)
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    ends, shapes = [], []

    class Clock(transformers.TrainerCallback):
        def on_log(self, *_, **__):  # after the end of an update, whose metrics are read here
            ends.append(time.monotonic())

    class Trainer(SFTTrainer):
        def compute_loss(self, model, inputs, *more, **keywords):
            labels = inputs["labels"]
            shapes.append((labels.numel(), int((labels != -100).sum())))
            return super().compute_loss(model, inputs, *more, **keywords)

    trainer = Trainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(
            given.model, dtype=torch.float32, attn_implementation="sdpa"
        ),
        args=settings_of(given, folder),
        train_dataset=rows_of(given.rows),
        processing_class=transformers.AutoTokenizer.from_pretrained(given.model),
        callbacks=[Clock()],
    )
    trainer.train()
    logged = [one for one in trainer.state.log_history if "loss" in one]
    first, last = given.warmup, given.warmup + given.updates
    positions, targets = (sum(column) for column in zip(*shapes[first:last], strict=True))
    return {
        "seconds": ends[last - 1] - ends[first - 1],
        "updates": given.updates,
        "tokens": logged[last - 1]["num_tokens"] - logged[first - 1]["num_tokens"],
        "targets": targets,
        "positions": positions,
        "loss": logged[0]["loss"],
        "compiled": 0,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "versions": {one.__name__: one.__version__ for one in (trl, transformers, torch)},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, required=True)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--rows", type=pathlib.Path, required=True)
    parser.add_argument("--mode", choices=tuple(MODES), required=True)
    parser.add_argument("--per_update", type=int, default=16)
    parser.add_argument("--packed", type=int, default=3328)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--updates", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HOME": folder}
        found = measure(given, folder)
    given.json.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
