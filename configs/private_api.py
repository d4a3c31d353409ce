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
SYSTEM = """\
You write short Python programs. Reply with one block of code that imports the library and defines the function, and \
with nothing else. For example, asked to use the library `math` for `solve(n)`, which returns the square root of n:
```python
import math

def solve(n):
    return math.sqrt(n)
```"""
# The attempt is not shown: this model repeats it. Prompts that were tried before: configs/results/README.md.
_EXAMPLE = """\
For example, after the message
"shedwork has no 'solve'. It has: shedwork.Cart(wheels=x).grease(winters=y); shedwork.Cart(wheels=x).axle_wear(stones=\
y); shedwork.Cart(wheels=x).hire(miles=y)."
the program `solve(k)`, which returns the pence that it costs to hire a cart of 40 wheels for k miles, is
```python
import shedwork

def solve(k):
    return shedwork.Cart(wheels=40).hire(miles=k)
```
"""
REFINE = f"""\
{_EXAMPLE}Now a program failed: {{critique}}

Take what fits from this message, and write the right program. {{question}}"""
# The same without what is said, of the arm that has no critique: the attempt stands in the place of its critique, and
# "Take what fits from this message, and" is left out, as there is no message.
REFINE_WITHOUT_CRITIQUE = f"""\
{_EXAMPLE}Now a program failed: {{response}}

Write the right program. {{question}}"""


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
    c.prompts.system = SYSTEM
    c.max_prompt_length = 256
    c.max_response_length = 96
    c.engine.num_slots = 24
    c.engine.prompt_bucket = 64

    c.sampling.temperature = 0.8

    c.critique.kind = "execution"
    c.critique.reveals_value = False  # what a test expects could be copied; the message alone is to teach
    c.prompts.refine = REFINE
    c.prompts.refine_without_critique = REFINE_WITHOUT_CRITIQUE
    c.refine.max_prompt_length = 640

    c.lora.rank = 16
    c.lora.alpha = 32.0
    c.optimizer.learning_rate = 2e-4  # the study's own is found by configs/studies/private_tuning.py
    c.optimizer.updates_per_batch = 1
    # Where the tokens lie that this model has to learn: of a right program 7 are below 0.1, 3 of these below 0.001
    # (configs/results/private_probabilities.json). With 0.1, the paper's, those below 0.001 weigh under 0.004.
    c.objective.gamma = 0.001
    c.objective.aggregate = "paper"
    c.packing.rows = 2
    c.packing.length = 768
    c.packing.slots = 16
    c.compute.remat = "none"
    c.checkpoints.every = 5
    c.eval.num_samples = 1
    c.eval.k = (1,)  # one greedy answer a task
    return c
