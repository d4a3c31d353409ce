"""RAFT (arXiv 2304.06767), the second row of Table 2 of arXiv 2506.03106v6: learn one's own right responses.

    L = - 1/T sum_t log pi(y_t | q, y_<t)   over y ~ pi_0(. | q) with R(y) >= pass_threshold

    cgrpo recipe --recipe=configs/recipes/raft.py --config=MY_CONFIG.py --workdir=DIR

kept: right responses; context: q; target: y; weight: 1. Departure: samples are drawn once, from the first weights,
and not in rounds (`self_training.py:with_critic=False` has rounds); all different right ones are learnt and not the
best alone, unless max_per_question says so.
"""

from cgrpo_jax.runs.recipes import Step


def get_steps(num_responses: int = 8, max_per_question: int = 0):
    """Returns the steps.

    Args:
      num_responses: to a question.
      max_per_question: of these, that are learnt; 0: all.
    """
    samples = {"collect.num_responses": num_responses, "collect.num_critiques": 0, "collect.num_refinements": 0}
    rows = {
        "finetune.loss": "nll",
        "finetune.rows": "{samples}",
        "finetune.stages": ("response",),
        "finetune.which": "right",
        "finetune.max_per_question": max_per_question,
    }
    return [
        Step("before", "evaluate"),
        Step("samples", "collect", samples),
        Step("learnt", "finetune", rows),
        Step("after", "evaluate", weights="learnt"),
    ]
