"""Critique-Coder (arXiv 2509.22824): a fifth of each batch asks whether a response is right; the verdict is the reward.

    R = 1 if the answer is right, else 0   of 80 % of the groups
    R = 1 if the verdict on a response is right, else 0   of 20 %
    A = (R - mean R) / (std R + 1e-6);   J = 1/(sum_i |y_i|) sum_i sum_t min(r A, clip(r, 0.8, 1.3) A),   G = 8

    cgrpo train --config=configs/methods/critique_coder.py --workdir=DIR --config.model.folder=MODEL \\
        --config.data.train=FILE

Numbers are of its release's scripts, which mask what is cut off, have no KL term, and update twice a batch of 128. Its
token mean, i over all responses of a minibatch, those of advantage 0 too, is one of answers and verdicts together.
Differs: there other models wrote the responses to judge, before training; here they are this iteration's own, right and
wrong ones as likely where there are both, without their thinking, cut in the middle where `max_prompt_length` does not
hold them. Its script samples at temperature 0.6, top-p 0.95 and top-k 20.
"""

from configs import paper

VALUES = {
    "verdict_share": 0.2,
    "refine.kind": "none",
    "num_responses": 8,
    "objective.scale_by_std": True,
    "objective.aggregate": "token_mean",
    "objective.clip_low": 0.2,
    "objective.clip_high": 0.3,
    "objective.mask_truncated": True,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
