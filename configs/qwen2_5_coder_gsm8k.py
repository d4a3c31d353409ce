"""Which critiques help a pretrained model with real questions: Qwen2.5-Coder-0.5B-Instruct on GSM8K, untrained.

    python -m cgrpo_jax.diagnose --config=configs/qwen2_5_coder_gsm8k.py --workdir=runs/gsm8k \\
        --config.model.folder=QWEN_FOLDER --config.data.train=gsm8k_test.jsonl

Four responses to each of the first 200 questions. Where none is right, all four are refined: after the first equation
that does not hold (`execution`), after the verdict alone (`indicative`), and after nothing (`none`, the control).
"""

from configs import base


def get_config():
    """Returns the configuration; the model's folder and the data are given on the command line."""
    c = base.get_config()

    c.data.answer_pattern = r"####\s*(.+)"
    c.grader.kind = "math"
    c.diagnosis.num_questions = 200
    c.diagnosis.num_responses = 4
    c.diagnosis.kinds = ("execution", "indicative", "none")

    c.prompts.question = (
        "{question}\nReason step by step, write each calculation as an equation, and put your final answer within "
        "\\boxed{}."
    )
    c.max_prompt_length = 384
    c.max_response_length = 256
    c.refine.max_prompt_length = 1024
    c.sampling.temperature = 0.7
    c.critique.kind = "execution"
    c.critique.reveals_value = False  # of a false equation the right side could be copied
    c.engine.num_slots = 32
    c.engine.decode_chunk = 16
    c.engine.prompt_bucket = 64
    return c
