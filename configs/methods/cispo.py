"""CISPO (MiniMax-M1, arXiv 2506.13585): the weight of a token is capped, and no token loses its gradient.

    J = 1/(sum_i |y_i|) sum_i sum_t sg(min(r, 5)) A log pi_theta,   A = (R - mean R) / (std R + 1e-6),   G = 8

    cgrpo train --config=configs/methods/cispo.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

MiniMax has no lower bound and does not give the upper one; 5 is ScaleRL's (arXiv 2510.13786). Nothing is refined.
Differs: its Eq. 4 divides by the tokens of each question's responses, and means over questions; here i runs over all
responses of the minibatch, those of advantage 0 too, so that every token weighs alike.
"""

from configs import paper

VALUES = {
    "refine.kind": "none",
    "num_responses": 8,
    "objective.initial_ratio": "cispo",
    "objective.scale_by_std": True,
    "objective.aggregate": "token_mean",
    "objective.clip_high": 4.0,
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
