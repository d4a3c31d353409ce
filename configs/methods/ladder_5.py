"""The paper's ladder (arXiv 2506.03106, Table 6), with shaping: 47.08 there, Qwen2.5-7B.

    A as before;   of a refinement rho A,   rho = pi_theta / (pi_theta + 0.1)

    cgrpo train --config=configs/methods/ladder_5.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

Step 5 of Table 6: the ratio of the refinement is shaped. Clipping is as the defaults have it.
"""

from configs import paper

VALUES = {
    "refine.kind": "policy",
    "refine.max_pass": 0.0,
    "refine.num_kept": 1,
    "num_responses": 7,
    "critique.kind": "cot",
    "objective.scale_by_std": False,
    "objective.aggregate": "constant",
    "refine.select": "best",
    "objective.refined_ratio": "shaped",
    "objective.gamma": 0.1,
    "objective.clip_refined": False,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
