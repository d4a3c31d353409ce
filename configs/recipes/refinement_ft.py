"""Refinement fine-tuning, a row of Table 2 of arXiv 2506.03106v6: learn right refinements as answers to q alone.

    L = - 1/T sum_t log pi(y'_t | q, y'_<t)   over y' ~ pi_0(. | q, y, c) with R(y') >= pass_threshold

    cgrpo recipe --recipe=configs/recipes/refinement_ft.py --config=MY_CONFIG.py --workdir=DIR

kept: right refinements after critiques whose verdict is right; context: q; target: y'; weight: 1. The critic is the
configuration's. Departure: which="right" also keeps what was refined after a critique whose verdict is wrong.
"""

from cgrpo_jax.runs.recipes import Step


def get_steps(num_responses: int = 8, refine: str = "all", which: str = "agreeing", context: str = "question",
              max_per_question: int = 0):  # fmt: skip
    """Returns the steps.

    Args:
      num_responses: to a question.
      refine: of these, those that are criticised and refined: failed, or all.
      which: of the refinements: agreeing, right.
      context: what they are learnt after: question, or prompt, which quotes response and critique.
      max_per_question: that are learnt; 0: all.
    """
    samples = {
        "collect.num_responses": num_responses,
        "collect.which": refine,
        "collect.num_critiques": 1,
        "collect.num_refinements": 1,
    }
    rows = {
        "finetune.loss": "nll",
        "finetune.rows": "{samples}",
        "finetune.stages": ("refinement",),
        "finetune.which": which,
        "finetune.context": context,
        "finetune.max_per_question": max_per_question,
    }
    return [
        Step("before", "evaluate"),
        Step("samples", "collect", samples),
        Step("learnt", "finetune", rows),
        Step("after", "evaluate", weights="learnt"),
    ]
