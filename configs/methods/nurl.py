"""NuRL (arXiv 2509.25666): where all responses fail, all but one are sampled again with a hint at the answer.

    A = (R - mean R) / (std R + 1e-6);   J = 1/G sum_i 1/|y_i| sum_t min(r A, clip(r) A),   G = 8, of which 7 saw a hint

    cgrpo train --config=configs/methods/nurl.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

A hint is abstract: made of question and answer, it tells no step's result. Differs: the policy writes one for each
failed response in each iteration, there one a question before training; and here a row that saw a hint is an answer to
the question alone, r = pi_theta(y | q) / pi_old(y | q). NuRL follows GRPO's convergence: start from such a run with
`--config.model.init=RUN`.
"""

from configs import paper

VALUES = {
    "refine.kind": "policy",
    "refine.which": "failed",
    "refine.max_pass": 0.0,
    "refine.group": "replace",
    "refine.select": "random",
    "refine.num_kept": 7,
    "num_responses": 8,
    "critique.kind": "hint",
    "critic.sees": "answer",
    "objective.refined_ratio": "importance",
    "objective.old_logp": "trainer",
    "objective.scale_by_std": True,
    "objective.aggregate": "sequence_mean",
    "objective.clip_refined": True,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
