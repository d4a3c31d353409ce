"""Critique-GRPO on a real pretrained model: SmolLM2-135M-Instruct on SVAMP word problems, on a CPU.

    python -m cgrpo_jax.train --config=configs/smollm2_svamp.py --workdir=runs/smollm2 \\
        --config.model.folder=SMOLLM2_FOLDER --config.data.train=svamp.jsonl

Half a minute an iteration on two cores in float32. The critique is the verdict and the right answer: this model is too
small to write critiques (asked for one, it never ends in a verdict), and at temperature 1 it hardly writes sentences.
"""

from configs import base


def get_config():
    """Returns the configuration; the model's folder and the data are given on the command line."""
    c = base.get_config()

    c.data.question_key = "Body,Question"
    c.data.answer_key = "Answer"
    c.data.num_train = 900
    c.data.num_eval = 0
    c.grader.kind = "numeric"

    c.num_iterations = 20
    c.questions_per_iteration = 2
    c.num_responses = 7
    c.prompts.question = "{question}\nThink in at most two short sentences, then end with the number."
    c.max_prompt_length = 192
    c.max_response_length = 48
    c.engine.num_slots = 14
    c.sampling.temperature = 0.5
    c.engine.prompt_bucket = 64

    c.critique.kind = "indicative_gt"
    c.refine.max_prompt_length = 512

    c.optimizer.updates_per_batch = 1
    c.optimizer.learning_rate = 5e-6
    c.packing.rows = 2
    c.packing.length = 512
    c.packing.slots = 16
    c.compute.remat = "none"
    c.checkpoints.every = 8
    return c
