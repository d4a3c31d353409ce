"""The paper's ladder (arXiv 2506.03106, Table 6), with no KL term: 42.66 there, Qwen2.5-7B.

    A = R - mean R;   J = 1/(G L) sum_i sum_t min(r A, clip(r) A),   G = 8

    cgrpo train --config=configs/methods/ladder_2.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

Step 2 of Table 6. Its number is that of Dr.GRPO, so the deviation and the lengths go too, as in dr_grpo.py.
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
