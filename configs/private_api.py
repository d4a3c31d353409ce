"""A private library that the model has never seen: Qwen2.5-Coder-0.5B-Instruct learns it from its errors.

    python configs/studies/private_libraries.py --out=runs/private
    python -m cgrpo_jax.train --config=configs/private_api.py --workdir=runs/private/run \\
        --config.model.folder=QWEN_FOLDER

The libraries and tasks are in configs/studies/private_libraries.py, the arms in configs/studies/private_api.py. Before
training, `tests/benchmarks/private_gate.py` asks whether refinements use the message. For a library of your own, see
cgrpo_jax/rewards/sandbox/MODULES.md.
"""

from configs import base

DATA = "runs/private"
REFINE = """\
{question}

This attempt fails:
{response}

Running it says:
{critique}

Do not repeat the attempt. Write the program again with exactly the names and arguments that the message lists.
{question}"""
# The same without what is said: the arm that has no critique changes this alone.
REFINE_WITHOUT_CRITIQUE = """\
{question}

This attempt fails:
{response}

Do not repeat the attempt. Write the program again.
{question}"""


def get_config():
    """Returns the configuration; the model's folder is given on the command line."""
    c = base.get_config()

    c.data.train = f"{DATA}/train.jsonl"
    c.data.eval = f"{DATA}/test.jsonl"
    c.data.solution_key = "solution"
    c.grader.kind = "code"
    c.grader.timeout = 10.0
    c.code.modules = tuple(f"{DATA}/lib/{name}.py" for name in ("tarnworks", "loomfare", "orchardia"))

    c.num_iterations = 20
    c.questions_per_iteration = 4
    c.num_responses = 6
    c.prompts.question = "{question} Answer with a short Python program alone."
    c.max_prompt_length = 192
    c.max_response_length = 96
    c.engine.num_slots = 24
    c.engine.prompt_bucket = 64

    c.critique.kind = "execution"
    c.critique.reveals_value = False  # what a test expects could be copied; the message alone is to teach
    c.prompts.refine = REFINE
    c.prompts.refine_without_critique = REFINE_WITHOUT_CRITIQUE
    c.refine.max_prompt_length = 640

    c.lora.rank = 16
    c.lora.alpha = 32.0
    c.optimizer.learning_rate = 2e-4
    c.optimizer.updates_per_batch = 1
    c.objective.aggregate = "paper"
    c.packing.rows = 2
    c.packing.length = 768
    c.packing.slots = 16
    c.compute.remat = "none"
    c.checkpoints.every = 5
    return c
