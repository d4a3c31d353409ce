"""The paper's ladder (arXiv 2506.03106, Table 6), with R1-GRPO: 41.18 there, Qwen2.5-7B.

    A = (R - mean R) / (std R + 1e-6);   J = 1/G sum_i 1/|y_i| sum_t [ min(r A, clip(r) A) - 0.001 k3 ],   G = 8

    cgrpo train --config=configs/methods/ladder_1.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

Step 1 of Table 6: plain GRPO, with a KL term. The same values as r1_grpo.py.
"""

from configs import paper

VALUES = {
    "refine.kind": "none",
    "num_responses": 8,
    "objective.scale_by_std": True,
    "objective.aggregate": "sequence_mean",
    "objective.kl_coef": 0.001,
    "objective.kl": "k3",
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
