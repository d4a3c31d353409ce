"""What the paper's runs have in common (arXiv 2506.03106): Critique-GRPO with 7 responses and 1 kept refinement.

Not a run by itself: qwen2_5_7b.py, qwen3_8b.py, qwen3_32b.py and llama3_2_3b.py add the model and the mesh. Questions
are given on the command line, as JSON lines with the columns `question` and `answer`.

The baselines are the same run with other values. Dr.GRPO: `--config.refine.kind=none --config.num_responses=8`. GRPO:
these and `--config.objective.scale_by_std=True --config.objective.aggregate=sequence_mean
--config.objective.kl_coef=0.001`. The cheaper critiques: `--config.critique.kind=indicative` and
`--config.critique.kind=indicative_gt`.
"""

from configs import base


def get_config():
    """Returns the paper's hyperparameters."""
    c = base.get_config()

    c.data.kind = "jsonl"
    c.grader.kind = "math"
    c.prompts.question = "{question}\nReason step by step, and put your final answer within \\boxed{}."

    c.num_iterations = 300  # not the paper's: about ten passes over 4,000 questions
    c.checkpoints.every = 25
    c.questions_per_iteration = 128
    c.optimizer.updates_per_batch = 2  # minibatches of 64 questions
    c.num_responses = 7  # [n]
    c.refine.num_kept = 1  # [k]
    c.max_prompt_length = 2048
    c.max_response_length = 6144
    c.critique.kind = "cot"

    c.optimizer.learning_rate = 1e-6
    c.objective.gamma = 0.1
    return c
