"""A critic that learns in the loop: Critique-GRPO (arXiv 2506.03106v6), self-critique trained beside the answers.

    J = 1/Q sum_q [ 1/n sum_initial sum_t min(r A, clip(r) A) + 1/k sum_refined sum_t min(rho A, clip(rho) A) ]
    of critiques c_i, N of a response, which either loss takes to the optimum of E[R] - beta KL(pi || p):
    J_c = - 1/2 mean_i ( log pi(c_i)/p(c_i) - R_i/beta + log 1/N sum_j exp(R_j/beta) )^2
    R = U + w V,   n = 7,   k = 1,   N = 4,   beta = 0.1,   w = 0.5

U is the mean worth of the refinements after a critique (1 fixed, 0.5 as before, 0 broken: RCO, arXiv 2506.22157), V is
1 where its verdict agrees with the verifier (Critique-RL, arXiv 2510.24320), p the critic that wrote it.

    cgrpo train --config=configs/methods/joint_critic.py --workdir=DIR --config.model.folder=MODEL \\
        --config.data.train=FILE

Differs from RCO, which collects once, by a fixed actor, for p the critic that training began with. Right answers are
criticised and refined too, lest to call all wrong be right. The weights are the policy's own;
`critic.training.weights="adapter"` trains an adapter on them, "model" those of `critic.folder` (with
`critic.kind="folder"`), and `critic.training.loss="policy_gradient"` ascends the same objective.
"""

from configs import paper

VALUES = {
    "refine.kind": "policy",
    "refine.which": "all",
    "refine.max_pass": 1.0,
    "refine.num_kept": 1,
    "num_responses": 7,
    "critique.kind": "cot",
    "critique.when": "all",
    "critique.num_per_response": 4,
    "critic.kind": "policy",
    "critic.endpoint.url": "",
    "critic.train": True,
    "critic.training.loss": "rco",
    "critic.training.weights": "policy",
    "critic.training.beta": 0.1,
    "critic.training.verdict_weight": 0.5,
    "critic.training.num_updates": 2,
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
