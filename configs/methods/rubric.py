"""Rubric rewards (RaR, arXiv 2507.17746; pitfalls as in HealthBench, 2505.08775) in the loop of Critique-GRPO.

    R = sum_i w_i m_i / sum_{w_i > 0} w_i;   m_i: item i of the question's rubric holds, by the judge or by its tests
    A = R - mean R;   J = 1/((n + k) L) [ sum_initial sum_t min(r A, clip(r) A) + sum_refined sum_t rho A ]
    r = pi_theta / pi_old,   rho = pi_theta / (pi_theta + 0.1),   n = 7,   k = 1

    cgrpo train --config=configs/methods/rubric.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE \\
        --config.judge.endpoint.url=http://localhost:8000/v1 --config.judge.endpoint.model=JUDGE

The answer of a question is its rubric (cgrpo_jax/rewards/rubrics). A response passes that meets all of it and falls
into no pitfall; where none does, the items that cost each reward, with their evidence, are the critique that it is
refined with. Differs from RaR, which refines nothing, has no evidence step (`judge.evidence=False`) and compares by
plain GRPO; its implicit reward is `judge.mode="implicit"`, which names no items, so that `critique.kind` is another.
"""

from configs import paper

VALUES = {
    "refine.kind": "policy",
    "refine.which": "failed",
    "refine.max_pass": 0.0,
    "refine.group": "append",
    "refine.select": "best",
    "refine.num_kept": 1,
    "num_responses": 7,
    "pass_threshold": 1.0,
    "grader.kind": "judge",
    "grader.timeout": 10.0,
    "judge.endpoint.url": "http://localhost:8000/v1",
    "judge.endpoint.model": "judge",
    "judge.mode": "explicit",
    "judge.evidence": True,
    "critique.kind": "checklist",
    "critique.when": "refining",
    "critic.kind": "policy",  # which is not asked
    "critic.folder": "",
    "critic.endpoint.url": "",
    "objective.refined_ratio": "shaped",
    "objective.gamma": 0.1,
    "objective.scale_by_std": False,
    "objective.aggregate": "constant",
    "objective.clip_initial": True,
    "objective.clip_refined": False,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
