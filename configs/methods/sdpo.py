"""SDPO (arXiv 2601.20802): the policy, shown what is wrong with its response, teaches itself the response's tokens.

    q_t = pi_mean(. | x, feedback, y_<t),   p_t = pi_theta(. | x, y_<t),   both over 20 tokens and all others
    J = - 1/N sum_failed sum_t KL(p_t || q_t),   N tokens of all responses

    cgrpo train --config=configs/methods/sdpo.py --workdir=DIR --config.model.folder=MODEL --config.data.train=FILE

The teacher has the exponential mean of the weights, rate 0.01 an update; the 20 tokens are the policy's most likely
ones before the updates. No refinement is sampled, and none need be right. As in its scripts for rich feedback, with
their learning rate; `--config.distil.divergence=jensen_shannon` is theirs without. As there the teacher sees question
and feedback, not the response; `--config.prompts.teacher=` shows it what a refinement sees. Beside the policy's own
loss: `--config.distil.kind=added`.

Differs: feedback is what a rule finds by running the response (`critique.kind`). There a sibling's right response
stands in its place where there is one, so that right responses learn from each other too. There N counts the tokens
that a teacher scored, here those of all responses of the minibatch, so that a batch with few failures takes a small
step. The policy does not weigh what its sampler did otherwise (there by at most 2), and updates twice a batch, not once
a question.
"""

from configs import paper

VALUES = {
    "refine.kind": "none",
    "num_responses": 8,
    "critique.kind": "execution",
    "critic.kind": "policy",  # a rule writes them
    "critic.endpoint.url": "",
    "critique.when": "all",
    "prompts.teacher": "{question}\n\nAn earlier attempt of yours failed. This is what was found:\n\n{critique}\n\n"
    "Solve the question correctly.",
    "distil.kind": "alone",
    "distil.which": "failed",
    "distil.coef": 1.0,
    "distil.divergence": "reverse_kl",
    "distil.top_tokens": 20,
    "distil.teacher": "average",
    "distil.average_rate": 0.01,
    "objective.aggregate": "token_mean",
}


def get_config():
    """Returns the paper's hyperparameters with the method's values."""
    c = paper.get_config()
    c.update_from_flattened_dict(VALUES)
    return c
