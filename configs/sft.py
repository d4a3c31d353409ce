"""Supervised fine-tuning on your own chats: as many as you have, on one device or a pod.

    cgrpo finetune --config=configs/sft.py --config.data.train=chat.jsonl --config.model.folder=FOLDER --workdir=RUN

A line of `chat.jsonl` is a chat, a prompt with its completion, or a row of a table with two named columns:

    {"messages": [{"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}]}
    {"prompt": "2 + 3?", "completion": "5"}
    {"question": "2 + 3?", "solution": "5"}            with --config.data.solution_key=solution

Every turn of the assistant is learnt (`finetune.turns=last`: the last), and nothing else. FOLDER is the Hugging Face
folder of a model with a chat template. With `--config.finetune.eval_rows=held_out.jsonl` the loss of held-out rows is
measured every 100 updates, and with `--config.eval.keep_best=-loss` the best checkpoint stays. Adapters in the place
of all weights: `--config.lora.rank=16 --config.optimizer.learning_rate=2e-4`. Then `cgrpo sample RUN` asks the model,
and `cgrpo convert --from=RUN --to_hf=OUT` exports it.

Preferences (DPO): rows `{"prompt": ..., "chosen": ..., "rejected": ...}`, and

    --config.finetune.loss=dpo --config.finetune.epochs=1 --config.optimizer.learning_rate=1e-6
"""

from configs import base


def get_config():
    """Returns the configuration; data and model are given on the command line."""
    c = base.get_config()

    c.finetune.loss = "nll"
    c.finetune.epochs = 3
    c.finetune.rows_per_update = 8  # so that 20 rows are 8 updates

    # Lengths in tokens: a row's context and targets together fill at most one token row. A longer one is an error that
    # names it; finetune.on_long="skip" leaves it out and counts it.
    # A CPU computes less where a token row is no longer than the longest chat: chats of 200 tokens (417 at most) take
    # SmolLM2-135M 1.0 GFLOP a token with packing.length 512, 1.4 with 2048 (padding, attention over the token row).
    c.max_prompt_length = 1024
    c.max_response_length = 1024
    c.packing.length = 2048
    c.packing.rows = 1
    c.packing.slots = 64

    c.optimizer.learning_rate = 1e-5
    c.optimizer.schedule = "cosine"
    c.optimizer.warmup_updates = 5
    c.optimizer.b2 = 0.95
    c.compute.remat = "layer"

    c.checkpoints.every = 100
    c.eval.every = 100
    c.eval.k = (1,)
    c.eval.num_samples = 1
    return c
