"""Critique fine-tuning (CFT, arXiv 2501.17703): learn critiques that are given, answer directly at test time.

    L = - 1/T sum_t log pi(c_t | [q; y], c_<t)

    cgrpo recipe --recipe=configs/recipes/cft.py --config=MY_CONFIG.py --workdir=DIR \\
        --config.finetune.rows=critiques.jsonl

A row of critiques.jsonl has the question (`data.question_key`), `response` and `critique`, and the context is this
model's critique prompt; or `prompt` and `completion`; or, as the release has them (WebInstruct-CFT), columns that
`--config.data.question_key=instruction,input --config.data.solution_key=output` name. kept: all rows; context: the
prompt of the critique; target: c with its verdict; weight: 1.

The paper's: 50,000 rows of GPT-4o, one epoch (`--config.finetune.epochs=1`), 512 rows an update, learning rate 5e-6,
cosine, a tenth warm-up. It chooses the checkpoint by MATH-500 and reports that too; here the last one is evaluated.
"""

from cgrpo_jax.runs.recipes import Step


def get_steps():
    """Returns the steps: before, learn, after."""
    return [
        Step("before", "evaluate"),
        Step("learnt", "finetune", {"finetune.loss": "nll", "finetune.stages": ("critique",), "finetune.which": "all"}),
        Step("after", "evaluate", weights="learnt"),
    ]
