"""Critique-GRPO on a small task in code, graded and critiqued by running programs in the sandbox, on two cores.

    python -m cgrpo_jax.train --config=configs/code_quickstart.py --workdir=runs/code_quickstart

Questions such as `f(a, b): a plus 3, b dofu` ask for one-line programs. The warm start explains 24 coined words such as
`dofu` but not 8 others, and three in five questions need one of these: they all fail at first. The test that fails says
what was expected, the refinement uses it, and training on the refinement as an answer to the question alone makes it
knowledge (what seeds it was tried with, and where held-out pass@1 went: configs/results/README.md). Half of a run is
the warm start. See configs/studies/code.py for what it is compared with. Most of an iteration's time goes into
grading: up to 180 programs, each in a sandbox of its own.
"""

from configs import quickstart


def get_config():
    """Returns the quickstart's configuration for the code task."""
    c = quickstart.get_config()

    c.model.tokenizer = "snippets"

    c.data.kind = "snippets"
    c.data.num_train = 256
    c.data.num_eval = 64
    c.data.chain_length = 2
    c.data.num_held_out = 8
    c.grader.kind = "code"
    c.critique.step_checker = "equations"

    c.warm_start.chain_lengths = (2,)
    # What a coined word means has a probability of 0.05 or so at first, among 19 numbers: gamma where these lie, not
    # where the chains' held-out products do.
    c.objective.gamma = 0.1

    c.num_iterations = 60
    c.optimizer.learning_rate = 5e-4
    c.optimizer.schedule = "constant"
    c.questions_per_iteration = 16
    c.max_prompt_length = 16
    c.max_response_length = 16
    c.refine.max_prompt_length = 64
    c.engine.num_slots = 112
    return c
