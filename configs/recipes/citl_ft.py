"""CITL-FT, a row of Table 2 of arXiv 2506.03106v6: learn one's own right responses and right refinements.

    L = - 1/T sum_t log pi(z_t | q, z_<t)   over z in {y: R(y) >= pass_threshold} and {y': R(y') >= pass_threshold}

    cgrpo recipe --recipe=configs/recipes/citl_ft.py --config=MY_CONFIG.py --workdir=DIR

kept: the union of what `raft.py` and `refinement_ft.py` keep; context: q; target: y or y'; weight: 1. The paper leaves
open whether y' is learnt after q or after (q, y, c): context=prompt is the latter.
"""

from cgrpo_jax.runs.recipes import Step


def get_steps(num_responses: int = 8, refine: str = "all", which: str = "agreeing", context: str = "question",
              max_per_question: int = 0):  # fmt: skip
    """Returns the steps; arguments as of `refinement_ft.py`."""
    samples = {
        "collect.num_responses": num_responses,
        "collect.which": refine,
        "collect.num_critiques": 1,
        "collect.num_refinements": 1,
    }
    rows = {
        "finetune.loss": "nll",
        "finetune.rows": "{samples}",
        "finetune.stages": ("response", "refinement"),
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
