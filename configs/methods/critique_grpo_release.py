"""Critique-GRPO (arXiv 2506.03106) by single choices of its release, which can't run as a whole (configs/README.md).

    A = (R - mean R) / (std R + 1e-6) over the 8 rows of a question
    J = 1/(G L) sum_rows sum_t x A + 2e-4 H
    x = pi_theta / pi_old of 7 responses,   pi_theta / (pi_theta + 0.1) of the refinement

    cgrpo train --config=configs/methods/critique_grpo_release.py --workdir=DIR --config.model.folder=MODEL \\
        --config.data.train=FILE

Differs from the text: every question is refined, right responses too; the best refinement takes the place of its
response; rewards are divided by the deviation, although the release's flag says not to; nothing is clipped. Its entropy
bonus of 0.001 is of a token mean a microbatch, about 2e-4 on this scale.
"""

from configs import paper

VALUES = {
    "refine.kind": "policy",
    "refine.which": "all",
    "refine.max_pass": 1.0,
    "refine.group": "replace",
    "refine.num_kept": 1,
    "num_responses": 8,
    "critique.kind": "cot",
    "objective.gamma": 0.1,
    "objective.scale_by_std": True,
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
