"""Does a pretrained model learn a private library from what it broke? The arms, written before any of them ran.

    python configs/studies/private_libraries.py --out=runs/private
    ln -s QWEN_FOLDER runs/private/model                                       # Qwen2.5-Coder-0.5B-Instruct
    python tests/benchmarks/private_gate.py --model=runs/private/model --workdir=runs/private/gate \\
        --json=configs/results/private_gate.json
    python launch/study.py --study=configs/studies/private_api.py --workdir=runs/private/study --jobs=1

Model, tasks and hyperparameters are those of configs/private_api.py, equal in every arm; an arm changes only what it is
named after. Every run starts from the model's own weights, with adapters. Held out: 60 other tasks over the three
libraries, and 60 over one that no training task uses, where nothing should be gained.

The gate comes first: on two libraries that no result is reported of, at least 10 % of the refinements must pass with
their own message, and at most half as many with another attempt's. It also writes the rows that the arm `shuffled`
takes its messages from; they are of the gate's libraries, so none of them names what a task of this study needs.

Budget: 15 hours of two cores in all, counted from the first run. That is 13 runs of 69 minutes: 20 iterations of 4
questions, 24 responses and at most 24 refinements of 96 tokens each, and 5 evaluations of 120 answers. The first three
iterations of the first run are timed; if 20 do not fit, all arms get fewer iterations (at least 15), never fewer seeds
in the headline. One learning rate for all arms, the best of three tries each of GRPO and execution, tried on the gate's
libraries. Gamma follows from what the untrained model gives the tokens of right programs over these libraries
(tests/benchmarks/private_probabilities.py), before anything is trained.
"""

import pathlib

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "private_api.py"
DATA = "runs/private"
LIBRARIES = ("tarnworks", "loomfare", "orchardia", "ferrykit")

# Sampled at most: 6 responses, and one refinement of each.
CRITIQUE_GRPO = {"refine.kind": "policy", "critique.kind": "execution"}

SETTINGS = [
    {
        "name": "private",
        "label": "A private library",
        "overrides": {
            "model.folder": f"{DATA}/model",
            "data.eval": f"{DATA}/test.jsonl,{DATA}/control.jsonl",
            "data.num_eval": 60,
            "code.modules": tuple(f"{DATA}/lib/{name}.py" for name in LIBRARIES),
            "eval.every": 5,
        },
        "headline_only": False,
    },
]

ARMS = [
    {
        "name": "grpo",
        "label": "GRPO, n = 7",
        "sees": "no critic",
        "overrides": {"refine.kind": "none", "num_responses": 7, "objective.scale_by_std": True},
        "headline": True,
        "seeds": range(3),
    },
    {
        "name": "execution",
        "label": "Critique-GRPO, execution",
        "sees": "what its own program raised",
        "overrides": CRITIQUE_GRPO,
        "headline": True,
        "seeds": range(3),
    },
    {
        "name": "shuffled",
        "label": "Critique-GRPO, another attempt's message",
        "sees": "what another program raised, at another library",
        "overrides": CRITIQUE_GRPO | {"critique.corruption": "another", "critique.others": f"{DATA}/gate/first"},
        "headline": True,
        "seeds": range(3),
    },
    {
        "name": "dr_grpo",
        "label": "Dr.GRPO, n = 12, as many texts as Critique-GRPO samples at most",
        "sees": "no critic",
        "overrides": {"refine.kind": "none", "num_responses": 12},
        "headline": False,
        "seeds": range(1),
    },
    {
        "name": "solution",
        "label": "The data's solution inserted",
        "sees": "no critic",
        "overrides": {"refine.kind": "solution"},
        "headline": False,
        "seeds": range(1),
    },
    {
        "name": "indicative",
        "label": "Critique-GRPO, indicative",
        "sees": "the verifier's verdict",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "indicative"},
        "headline": False,
        "seeds": range(1),
    },
    {
        "name": "no_critique",
        "label": "Critique-GRPO without a critique",
        "sees": "its own attempt alone",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "none"},
        "headline": False,
        "seeds": range(1),
    },
]

MEASURED = (
    "pass@1 of one greedy answer to each task, over both files; of the tasks that it fails before training, the share "
    "that it solves after it. No samples are drawn."
)

# Arms whose entropy is plotted.
ENTROPY = ["execution", "shuffled", "grpo"]


def get_study():
    """Returns the study: a base configuration, a setting, arms and their seeds."""
    return {
        "config": str(CONFIG),
        "settings": SETTINGS,
        "arms": ARMS,
        "entropy": ENTROPY,
        "warm_start": False,
        "measured": MEASURED,
    }
