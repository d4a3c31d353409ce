"""Weak to strong (arXiv 2506.03106, Table 7): a frozen, weaker model refines; 65.55 there, Qwen3-8B-Base for Qwen3-8B.

    A as before;   y' ~ pi_weak(. | x, y, c),   of its tokens, encoded for the policy, rho A,
    rho = pi_theta(y' | x) / (pi_theta(y' | x) + 0.1)

    cgrpo train --config=configs/methods/weak_to_strong.py --workdir=DIR --config.model.folder=MODEL \\
        --config.data.train=FILE --config.refiner.folder=WEAK_MODEL

GRPO comes to 63.75 there, the policy's own refinements to 68.13. A rule writes the critiques, with the answer in them.
The weak model has its own tokenizer and chat template; its text is encoded again, and ends the policy's turn only
where the weak model has ended its own.
"""

from configs import paper

VALUES = {
    "refine.kind": "policy",
    "refine.which": "failed",
    "refine.max_pass": 0.0,
    "refine.num_kept": 1,
    "refiner.folder": "Qwen3-8B-Base",
    "num_responses": 7,
    "critique.kind": "indicative_gt",
    "critic.kind": "policy",  # a rule writes them
    "critic.endpoint.url": "",
    "objective.refined_ratio": "shaped",
    "objective.gamma": 0.1,
    "objective.scale_by_std": False,
    "objective.aggregate": "constant",
    "objective.clip_refined": False,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
