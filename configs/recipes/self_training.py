"""Self-training with a critic in the loop (AutoMathCritique, arXiv 2411.16579): T rounds of sampling and learning.

    D_t = {(q, z): z a right response, or a right refinement of a wrong one, by pi_(t-1)}, at most m rows a question
    pi_t = argmin over pi, started from pi_0, of - sum over D_0 and D_t of log pi(z | q)

    cgrpo recipe --recipe=configs/recipes/self_training.py:rounds=3,num_responses=5 --config=MY_CONFIG.py --workdir=DIR

kept: right responses and right refinements of wrong ones, no two alike, drawn down to max_per_question; context: q
alone; target: y or y'; weight: 1. Each round learns from the first weights, on its own rows and on D_0, the original
data (`original=rows.jsonl`), as the release does. with_critic=False is plain rejection sampling. Only failures cost
critiques and refinements. The paper's critic is a model tuned on annotated errors; here it is the configuration's.
"""

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs.recipes import Step


def get_steps(rounds: int = 3, num_responses: int = 5, num_refinements: int = 1, max_per_question: int = 1,
              with_critic: bool = True, original: str = ""):  # fmt: skip
    """Returns the steps.

    Args:
      rounds: T.
      num_responses: N, to a question in a round.
      num_refinements: of a wrong response, after its critique.
      max_per_question: m, rows that a round learns; 0: all.
      with_critic: whether wrong responses are criticised and refined.
      original: file of rows that every round learns too; empty for none.
    """
    if rounds < 1:
        raise UserError(f"rounds {rounds} learns nothing; use at least 1.")
    steps, learnt = [Step("before", "evaluate")], ""
    for number in range(1, rounds + 1):
        collected = {
            "collect.num_responses": num_responses,
            "collect.which": "failed",
            "collect.num_critiques": int(with_critic),
            "collect.num_refinements": num_refinements if with_critic else 0,
        }
        rows = f"{{samples_{number}}}"
        kept = {
            "finetune.loss": "nll",
            "finetune.rows": f"{original},{rows}" if original else rows,
            "finetune.stages": ("response", "refinement"),
            "finetune.which": "right",
            "finetune.context": "question",
            "finetune.max_per_question": max_per_question,
        }
        steps.append(Step(f"samples_{number}", "collect", collected, weights=learnt, stream=number))
        learnt = f"learnt_{number}"
        steps.append(Step(learnt, "finetune", kept))
        steps.append(Step(f"after_{number}", "evaluate", weights=learnt))
    return steps
