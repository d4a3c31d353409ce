"""GSPO (arXiv 2507.18071): one ratio a response, the geometric mean of its tokens' ratios.

    s_i = (pi_theta(y_i | q) / pi_old(y_i | q))^(1 / |y_i|)
    J = 1/G sum_i min(s_i A_i, clip(s_i, 1 - 3e-4, 1 + 4e-4) A_i),   A = (R - mean R) / (std R + 1e-6),   G = 8

    cgrpo train --config=configs/methods/gspo.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

Bounds and four minibatches a batch are its section 5.1's; it does not say G. Nothing is refined. `pi_old` is the
trainer's: the sampler's, in bfloat16, differs by more than these bounds.
"""

from configs import paper

VALUES = {
    "refine.kind": "none",
    "num_responses": 8,
    "objective.initial_ratio": "sequence",
    "objective.scale_by_std": True,
    "objective.aggregate": "sequence_mean",
    "objective.old_logp": "trainer",
    "objective.clip_low": 3e-4,
    "objective.clip_high": 4e-4,
    "optimizer.updates_per_batch": 4,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
