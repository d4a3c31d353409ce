"""LUFFY (arXiv 2504.14945): one of the 8 rows of every question is a worked solution, its ratio shaped.

    A = R - mean(R of the 8 rows);   J = 1/(8 L) sum_rows sum_t x A + 2e-4 H
    x = pi_theta / pi_old of 7 responses,   pi_theta / (pi_theta + 0.1) of the solution (pi_old of it is taken as 1)

    cgrpo train --config=configs/methods/luffy.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

As in its scripts nothing is clipped, nothing divided by the deviation or the length, and there is no KL term. Its
entropy bonus of 0.001 is of a token mean, about 2e-4 on this scale. The data need a column `solution`.
"""

from configs import paper

VALUES = {
    "refine.kind": "solution",
    "refine.which": "all",
    "refine.max_pass": 1.0,
    "refine.num_kept": 1,
    "num_responses": 7,
    "data.solution_key": "solution",
    "objective.refined_ratio": "shaped",
    "objective.gamma": 0.1,
    "objective.scale_by_std": False,
    "objective.aggregate": "constant",
    "objective.clip_initial": False,
    "objective.clip_refined": False,
    "objective.entropy_coef": 2e-4,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
