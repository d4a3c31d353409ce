"""Dr.GRPO (arXiv 2503.20783): GRPO without its two biases; 42.66 in Table 2 of Critique-GRPO.

    A = R - mean R;   J = 1/(G L) sum_i sum_t min(r A, clip(r) A),   G = 8,   L = max_response_length

    cgrpo train --config=configs/methods/dr_grpo.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

Nothing is refined. Differs from R1-GRPO: no division by the deviation, none by the response's length, no KL term.
"""

from configs import paper

VALUES = {
    "refine.kind": "none",
    "num_responses": 8,
    "objective.scale_by_std": False,
    "objective.aggregate": "constant",
    "objective.kl_coef": 0.0,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
