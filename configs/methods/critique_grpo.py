"""Critique-GRPO as its text has it (arXiv 2506.03106v6, Eq. 2 to 4): 47.08 with GPT-4o as the critic, Table 2.

    A = R - mean(R of the n + k rows)
    J = 1/Q sum_q [ 1/n sum_initial sum_t min(r A, clip(r) A) + 1/k sum_refined sum_t min(rho A, clip(rho) A) ]
    r = pi_theta / pi_old,   rho = pi_theta / (pi_theta + 0.1),   n = 7,   k = 1

    cgrpo train --config=configs/methods/critique_grpo.py --workdir=DIR --config.model.folder=MODEL \\
        --config.data.train=FILE

Differs from the defaults, which weigh all rows alike (`aggregate="constant"`) and do not clip rho. The critic is the
policy itself; `configs/qwen2_5_7b_gpt4o.py` has the paper's.
"""

from configs import paper

VALUES = {
    "refine.kind": "policy",
    "refine.max_pass": 0.0,
    "refine.num_kept": 1,
    "num_responses": 7,
    "critique.kind": "cot",
    "objective.gamma": 0.1,
    "objective.scale_by_std": False,
    "objective.aggregate": "paper",
    "objective.clip_initial": True,
    "objective.clip_refined": True,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
