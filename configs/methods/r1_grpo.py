"""R1-GRPO (DeepSeek-R1, arXiv 2501.12948), the plain GRPO that Critique-GRPO is compared with: 41.18 in its Table 2.

    A = (R - mean R) / (std R + 1e-6);   J = 1/G sum_i 1/|y_i| sum_t [ min(r A, clip(r) A) - 0.001 k3 ],   G = 8

    cgrpo train --config=configs/methods/r1_grpo.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

Nothing is refined. Differs from Critique-GRPO in the deviation, in the mean over each response, and in its KL term.
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
