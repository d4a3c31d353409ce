"""RLTF-SD (arXiv 2602.02482), the half that distils: every refinement teaches the answer to the question alone.

    A = R - mean(R of the first turn)
    J = 1/(N L) [ sum_initial sum_t min(r A, clip(r) A) + sum_refined sum_t A log pi_theta ]

    cgrpo train --config=configs/methods/rltf_sd.py --workdir=DIR --config.model.folder=MODEL \\
        --config.data.train=FILE

The baseline is the first turn's, a refinement has no importance weight, and all of them are kept: n = 7 responses and
as many refinements. Differs: the second turn is not trained after the first one and its critique. From a summary of the
paper; its scale of lengths is not known here.
"""

from configs import paper

VALUES = {
    "refine.kind": "policy",
    "refine.which": "all",
    "refine.max_pass": 1.0,
    "refine.num_kept": 7,
    "num_responses": 7,
    "critique.kind": "cot",
    "objective.baseline": "initial",
    "objective.refined_ratio": "logp",
    "objective.scale_by_std": False,
    "objective.aggregate": "constant",
    "objective.clip_refined": False,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
