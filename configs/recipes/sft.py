"""SFT: learn given solutions, the first row of the paper's Table 2 (arXiv 2506.03106v6); also any chats of your own.

    L = - 1/T sum_t log pi(s_t | q, s_<t),   s the solution that the data give, T the targets of an update

    cgrpo recipe --recipe=configs/recipes/sft.py --config=MY_CONFIG.py --workdir=DIR \\
        --config.finetune.rows=solutions.jsonl

A row of solutions.jsonl is as `configs/sft.py` says. kept: all rows; context: q; target: s; weight: 1. The paper's are
4,000 prompts of OpenR1 with DeepSeek-R1's solutions; its learning rate and epochs are not known.
"""

from cgrpo_jax.runs.recipes import Step


def get_steps():
    """Returns the steps: before, learn, after."""
    return [
        Step("before", "evaluate"),
        Step("learnt", "finetune", {"finetune.loss": "nll"}),
        Step("after", "evaluate", weights="learnt"),
    ]
