"""Critique fine-tuning on one's own samples, a row of Table 2 of arXiv 2506.03106v6: learn to criticise.

    L = - 1/T sum_t log pi(c_t | q, y, c_<t)   over c whose verdict on y is the grader's

    cgrpo recipe --recipe=configs/recipes/critique_ft.py --config=MY_CONFIG.py --workdir=DIR

kept: critiques whose verdict is right, of right and of wrong responses; context: the critique's prompt, with q and y;
target: c; weight: 1. At test time the model answers directly. The critic is the configuration's (`critic.*`; GPT-4o in
the paper), and must write: critiques of rules are not learnt. `cft.py` learns critiques that are given.
"""

from cgrpo_jax.runs.recipes import Step


def get_steps(num_responses: int = 8, max_per_question: int = 0):
    """Returns the steps.

    Args:
      num_responses: to a question, each of which is criticised once.
      max_per_question: critiques that are learnt; 0: all.
    """
    samples = {
        "collect.num_responses": num_responses,
        "collect.which": "all",
        "collect.num_critiques": 1,
        "collect.num_refinements": 0,
        "critique.kind": "cot",
    }
    rows = {
        "finetune.loss": "nll",
        "finetune.rows": "{samples}",
        "finetune.stages": ("critique",),
        "finetune.which": "right",
        "finetune.max_per_question": max_per_question,
    }
    return [
        Step("before", "evaluate"),
        Step("samples", "collect", samples),
        Step("learnt", "finetune", rows),
        Step("after", "evaluate", weights="learnt"),
    ]
