"""Does running a program's tests teach what a verdict can't? The arms of a comparison on the small code task.

    python launch/study.py --study=configs/studies/code.py --workdir=runs/code --jobs=2

Task, held-out words, held-out questions and hyperparameters are those of configs/code_quickstart.py, equal in every
arm; an arm changes only what it is named after. The generated questions do not depend on the seed of a run. For each
seed one warm start is trained, whose lessons come in the format of every arm's critiques, and every arm of that seed
begins with its weights.
"""

import pathlib

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "code_quickstart.py"

# Sampled at most: 7 responses, and one refinement of each.
CRITIQUE_GRPO = {"refine.kind": "policy", "num_responses": 7, "refine.num_kept": 1}

SETTINGS = [
    {
        "name": "held_out_words",
        "label": "Held-out words: the warm start never shows what some operations are called",
        "overrides": {},
        "headline_only": False,
    },
]

ARMS = [
    {
        "name": "execution",
        "label": "Critique-GRPO, execution",
        "sees": "the first test that fails: the call, what it returns, what is expected",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "execution"},
        "headline": True,
    },
    {
        "name": "indicative",
        "label": "Critique-GRPO, indicative",
        "sees": "the verifier's verdict",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "indicative"},
        "headline": True,
    },
    {
        "name": "execution_no_value",
        "label": "Critique-GRPO, execution without the value",
        "sees": "the first test that fails: the call, what it returns",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "execution", "critique.reveals_value": False},
        "headline": False,
    },
    {
        "name": "r1_dr_grpo",
        "label": "R1-Dr.GRPO, n = 8",
        "sees": "no critic",
        "overrides": {"refine.kind": "none", "num_responses": 8, "objective.scale_by_std": False},
        "headline": False,
    },
]

# Arms whose entropy is plotted.
ENTROPY = ["execution", "indicative", "execution_no_value", "r1_dr_grpo"]


def get_study():
    """Returns the study: a base configuration, a setting, arms and their seeds."""
    return {
        "config": str(CONFIG),
        "settings": SETTINGS,
        "arms": [arm | {"seeds": range(3)} for arm in ARMS],
        "entropy": ENTROPY,
    }
