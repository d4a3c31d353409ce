"""RCO (arXiv 2506.22157): a critic is trained by what its critiques achieve.

    L = 1/(2N) sum_i ( log p(c_i | q, y) - log p_0(c_i | q, y) + log Z - CU_i / beta )^2,
    log Z = log 1/N sum_i exp(CU_i / beta),   CU_i = mean over M refinements of 1 better, 0.5 alike, 0 worse

    cgrpo recipe --recipe=configs/recipes/rco.py --config=MY_CONFIG.py --workdir=DIR

The critic to be trained writes N critiques of each response, a fixed actor M refinements after each. kept: all
critiques of responses that have two at least; context: the critique's prompt; target: c; weight: CU_i / beta - log Z,
what its log-ratio is to be. The actor is the configuration's model; the critic starts as its copy, or from
`critic=FOLDER`. The last steps collect on held-out questions with the critic before and after: utility, fix rate, break
rate, verdicts.

Departures: by default the grader compares a refinement with its response; `--config.collect.utility=judge` asks a judge
in both orders, as the paper does. Right responses are criticised too, else a critic learns to call everything wrong.
"""

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs.recipes import Step


def get_steps(num_responses: int = 4, num_critiques: int = 4, num_refinements: int = 5, which: str = "all",
              critic: str = "", loss: str = "rco"):  # fmt: skip
    """Returns the steps.

    Args:
      num_responses: to a question.
      num_critiques: N, of each response.
      num_refinements: M, after each critique.
      which: of the responses, those that are criticised: all, failed.
      critic: Hugging Face folder of the critic, with the actor's tokenizer; empty: the actor's own weights.
      loss: rco, or dpo (`dpco.py`).
    """
    if num_critiques < 2:
        raise UserError(f"num_critiques {num_critiques} leaves a critique nothing to be compared with; use at least 2.")
    asked = {
        "critique.kind": "cot",
        "collect.num_responses": num_responses,
        "collect.which": which,
        "collect.num_critiques": num_critiques,
        "collect.num_refinements": num_refinements,
    }
    untrained = {"critic.kind": "folder" if critic else "policy", "critic.folder": critic}
    trained = {"critic.kind": "folder", "critic.folder": "{exported}"}
    start = {"model.folder": critic, "model.init": ""} if critic else {}
    rows = {"finetune.loss": loss, "finetune.rows": "{samples}"}
    rows |= {"finetune.stages": ("critique",)} if loss == "dpo" else {}
    return [
        Step("samples", "collect", asked | untrained),
        Step("critic", "finetune", rows | start),
        Step("exported", "convert", weights="critic"),
        Step("untrained", "collect", asked | untrained | {"collect.questions": "held_out"}),
        Step("trained", "collect", asked | trained | {"collect.questions": "held_out"}),
    ]
