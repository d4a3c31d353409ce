"""DAPO (arXiv 2503.14476): clip higher, dynamic sampling, token mean, overlong filtering and punishment.

    A = (R' - mean R') / (std R' + 1e-6);   R' = R + 0.5 clip((L - B - |y|) / B, -1, 0)
    J = 1/(sum_i |y_i|) sum_i sum_t min(r A, clip(r, 0.8, 1.28) A)   over responses that were not cut off,   G = 16

    cgrpo train --config=configs/methods/dapo.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

Differs: i runs over all responses of the minibatch, those of advantage 0 too, so that every token weighs alike; its
Eq. 8 divides by the tokens of each question's responses. Rewards are 0 and 1 here, -1 and 1 there: the punishment of at
most 1 there is 0.5 here. Its B is 4,096 of 20,480 tokens; here as large a share of `max_response_length`. Questions are
drawn on until every group of the batch has a gradient, ten batches of the paper's 128 in all: its recipe allows ten
times of drawing, of three batches each, and ends the run after these, where here the batch is filled up with groups
without a gradient.
"""

from configs import paper

VALUES = {
    "max_extra_questions": 1152,
    "refine.kind": "none",
    "num_responses": 16,
    "objective.scale_by_std": True,
    "objective.aggregate": "token_mean",
    "objective.clip_low": 0.2,
    "objective.clip_high": 0.28,
    "objective.mask_truncated": True,
    "objective.length_penalty": 0.5,
    "objective.length_penalty_share": 0.2,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
