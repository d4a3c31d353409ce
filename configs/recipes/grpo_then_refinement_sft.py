"""GRPO, then refinements of what still fails, then SFT on the right ones: Table 8 of arXiv 2506.03106v6.

    pi_1 = GRPO(pi_0);   L = - 1/T sum_t log pi(y'_t | q, y'_<t), started from pi_1,
    over y' ~ pi_1(. | q, y, c), y ~ pi_1(. | q) wrong, y' right

    cgrpo recipe --recipe=configs/recipes/grpo_then_refinement_sft.py --config=MY_CONFIG.py --workdir=DIR

The stage-wise use of the two kinds of feedback that Critique-GRPO joins: 43.15 beside its 47.08 (GRPO alone: 41.18).
kept: right refinements of wrong responses; context: q alone; target: y'; weight: 1.
"""

from cgrpo_jax.runs.recipes import Step


def get_steps(num_responses: int = 8, num_refinements: int = 1, max_per_question: int = 0):
    """Returns the steps.

    Args:
      num_responses: to a question, once GRPO has ended.
      num_refinements: after the critique of a wrong one.
      max_per_question: that are learnt; 0: all.
    """
    failed = {
        "collect.num_responses": num_responses,
        "collect.which": "failed",
        "collect.num_critiques": 1,
        "collect.num_refinements": num_refinements,
    }
    rows = {
        "finetune.loss": "nll",
        "finetune.rows": "{failed}",
        "finetune.stages": ("refinement",),
        "finetune.which": "right",
        "finetune.max_per_question": max_per_question,
    }
    return [
        Step("before", "evaluate"),
        Step("grpo", "train", {"refine.kind": "none"}),
        Step("between", "evaluate", weights="grpo"),
        Step("failed", "collect", failed, weights="grpo"),
        Step("learnt", "finetune", rows, weights="grpo"),
        Step("after", "evaluate", weights="learnt"),
    ]
