"""Critique-GRPO on a real pretrained model that a CPU can train: SmolLM2-135M-Instruct on one-step word problems.

    python configs/studies/word_problems.py --out=runs/words
    python -m cgrpo_jax.train --config=configs/smollm2_words.py --workdir=runs/smollm2_words \\
        --config.model.folder=SMOLLM2_FOLDER

and GRPO, for comparison, with `--config.refine.kind=none --config.num_responses=8`. At temperature 1 this model hardly
writes sentences; at 0.6 it solves about a fifth of the problems. The critique is the verdict and the right answer:
after one that recomputes the equations of the response ("execution") 5 % of its first refinements passed.
"""

from configs import base


def get_config():
    """Returns the configuration; the model's folder is given on the command line."""
    c = base.get_config()

    c.data.train = "runs/words/train.jsonl"
    c.data.eval = "runs/words/test.jsonl"
    c.grader.kind = "numeric"

    c.num_iterations = 100
    c.questions_per_iteration = 8
    c.num_responses = 7
    c.sampling.temperature = 0.6
    c.prompts.question = "{question} Answer in one short sentence with the calculation."
    c.max_prompt_length = 128
    c.max_response_length = 100
    c.engine.num_slots = 64
    c.engine.decode_chunk = 16

    c.critique.kind = "indicative_gt"
    c.prompts.refine = (
        "{question}\n\nA wrong attempt: {response}\n{critique}\n\nAnswer in one short sentence with the calculation."
    )
    c.refine.max_prompt_length = 384
    c.refine.drop_critique_mentions = True

    c.optimizer.updates_per_batch = 1
    c.optimizer.learning_rate = 1e-5
    c.packing.rows = 4
    c.packing.length = 512
    c.compute.remat = "none"
    c.checkpoints.every = 5
    c.eval.every = 25
    c.eval.num_samples = 1
    c.eval.k = (1,)
    return c
