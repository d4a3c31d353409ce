"""TRL's SFTTrainer and DPOTrainer on the same chats, weights and rates: the losses of ten steps.

Needs the extra `parity`. Both read the chats themselves, by the same template: the masks are compared, too.
"""

import functools
import json

import chain_prompts
import chat_tokenizer
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from cgrpo_jax import sharding
from cgrpo_jax.datasets.chat_rows import Reader
from cgrpo_jax.models.hf import config as hf_config
from cgrpo_jax.models.hf import load
from cgrpo_jax.models.hf.tokenizer import load_tokenizer
from cgrpo_jax.records import LossKind
from cgrpo_jax.runtime import console
from cgrpo_jax.training.learner import Learner, LearnerSettings
from cgrpo_jax.training.optimizer import init_state, make_optimizer, make_schedule
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.train_step import LossSettings

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

PAD = "<|pad|>"  # by itself: of a padding id torch does not train the embedding, were it the end of a turn too
STEPS, ROWS, RATE, BETA = 10, 4, 1e-3, 0.1
# As ChatML, but for the line end after a turn: TRL learns it too, though no generation gets that far.
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMALL = {
    "vocab_size": 259,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model with a tokenizer, as Hugging Face has them."""
    torch.manual_seed(0)
    tokens = (*chat_tokenizer.CHATML_TOKENS[::-1], PAD)
    folder = chat_tokenizer.write(tmp_path_factory.mktemp("model") / "model", TEMPLATE, tokens, pad_token=PAD)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    ends = {"eos_token_id": 257, "pad_token_id": 258, "bos_token_id": None}
    net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SMALL, **ends))
    net.save_pretrained(folder)
    return folder


def chats(*answers):
    """Returns rows of prompts with answers of different lengths under these names."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(STEPS * ROWS):
        words = [" ".join(map(str, rng.integers(0, 100, rng.integers(1, 6)))) for _ in range(1 + len(answers))]
        row = {"prompt": [{"role": "user", "content": words[0]}]}
        rows.append(row | {n: [{"role": "assistant", "content": w}] for n, w in zip(answers, words[1:], strict=True)})
    return rows


def ours(folder, rows, loss, path):
    """Returns the losses of the updates of `cgrpo finetune` on rows in their order."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    prompts = chain_prompts.make(load_tokenizer(folder))
    reader = Reader(prompts, loss, turns="all", max_target=64, question_key="question", solution_key="")
    units = list(reader.units(path))
    optimizer = make_optimizer(learning_rate=RATE, max_grad_norm=1.0, b2=0.999)
    settings = LearnerSettings(
        optimizer=optimizer,
        learning_rate=make_schedule("constant", peak=RATE),
        loss=LossSettings(max_length=64, beta=BETA),
        shape=PackShape(num_token_rows=1, pack_length=192, num_slots=16, from_rows=True),
        updates_per_batch=1,
        rescore=False,
        remat="none",
        max_nonfinite_updates=0,
        compares=loss == LossKind.DPO,
    )
    config = hf_config.read_config(folder)
    params = jax.tree.map(jnp.asarray, load.load_params(folder, config))
    learner = Learner(config, mesh=sharding.one_device(), dtype="float32", settings=settings, clock=console.Clock())
    learner.reference = jax.tree.map(jnp.copy, params) if settings.compares else None
    state, losses = init_state(params, optimizer), []
    for step in range(STEPS):
        batch = [
            [row.replace(pair=row.pair * number) for row in unit.rows]
            for number, unit in enumerate(units[step * ROWS : (step + 1) * ROWS], start=1)
        ]
        state, updates = learner.update(state, batch)
        losses.append(updates.stats[0]["nll_loss"] + updates.stats[0]["dpo_loss"])
    return losses


def theirs(folder, rows, trainer, config, output, **more):
    """Returns the losses of the steps of one of TRL's trainers on rows in their order."""
    losses = []

    class Recorded(trainer):
        def training_step(self, *args, **kw):
            loss = super().training_step(*args, **kw)
            losses.append(float(loss))
            return loss

    arguments = config(
        output_dir=str(output),
        per_device_train_batch_size=ROWS,
        max_steps=STEPS,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        max_length=None,
        **more,
    )
    net = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    Recorded(
        model=net, args=arguments, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer
    ).train()
    return losses


CASES = {
    "SFTTrainer": (LossKind.NLL, ("completion",), lambda: (trl.SFTTrainer, trl.SFTConfig), {}),
    "DPOTrainer": (LossKind.DPO, ("chosen", "rejected"), lambda: (trl.DPOTrainer, trl.DPOConfig), {"beta": BETA}),
}


@pytest.mark.filterwarnings("ignore")  # of TRL, transformers and datasets
@pytest.mark.parametrize("name", CASES)
def test_the_losses_of_ten_steps(name, folder, tmp_path):
    loss, answers, classes, more = CASES[name]
    rows = chats(*answers)
    run = functools.partial(theirs, folder, rows, *classes(), tmp_path / "trl")
    expected = run(**more)
    found = ours(folder, rows, loss, tmp_path / "rows.jsonl")
    assert len(expected) == STEPS and np.ptp(expected) > 0.05  # its weights do move
    np.testing.assert_allclose(found, expected, atol=1e-4, rtol=0)
