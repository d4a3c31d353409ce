"""The paper's ladder (arXiv 2506.03106, Table 6), with the best refinement: 43.95 there, Qwen2.5-7B.

    A = R - mean R of the 8 rows
    J = 1/(8 L) sum_rows sum_t min(r A, clip(r) A),   r = pi_theta / pi_old given the question alone

    cgrpo train --config=configs/methods/ladder_4.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

Step 4 of Table 6: the refinement of the highest reward joins them.
The paper does not say which unshaped ratio of a refinement it means; here pi_theta / pi_old given the question alone,
as of a response, so that pi_old is the trainer's (`refined_ratio="plain"` takes it as 1).
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
    "objective.refined_ratio": "importance",
    "objective.clip_refined": True,
    "objective.old_logp": "trainer",
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
