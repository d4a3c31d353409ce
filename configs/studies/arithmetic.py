"""Does a critique teach what a reward alone can't? The arms of a comparison on the quickstart's task.

    python launch/study.py --study=configs/studies/arithmetic.py --workdir=runs/arithmetic --jobs=2

Task, held-out facts, held-out questions and hyperparameters are those of configs/quickstart.py, equal in every arm;
an arm changes only what it is named after. The generated questions do not depend on the seed of a run. For each setting
and seed one warm start is trained, and every arm of that seed begins with its weights.

Headline arms have five seeds, the others three. They were committed, with everything else here, before the runs, but
for one change: when three seeds of every arm had run, the paper's own aggregation was made a headline arm (and the
quickstart's): with `constant`, as in the released code, a refinement has a seventh of the weight and learning is slow.
"""

import pathlib

CONFIG = pathlib.Path(__file__).resolve().parents[1] / "quickstart.py"

# Sampled at most: 7 responses, and one refinement of each.
CRITIQUE_GRPO = {"refine.kind": "policy", "num_responses": 7, "refine.num_kept": 1}
# What every arm has unless it says otherwise: a row weighs what its tokens weigh, as in Dr.GRPO and the released code.
CONSTANT = {"objective.aggregate": "constant"}
DR_GRPO = {"refine.kind": "none", "objective.scale_by_std": False, "objective.aggregate": "constant"}

SETTINGS = [
    {
        "name": "held_out_facts",
        "label": "Held-out facts: the warm start never shows some products, and most questions need one",
        "overrides": CONSTANT,
        "headline_only": False,
    },
    {
        "name": "rare_facts",
        "label": "No held-out facts: the warm start shows the same products, but rarely",
        # Of about 15,000 lessons in solving, 46 hold one of the 16 facts: each is seen about three times.
        "overrides": CONSTANT | {"warm_start.rare_rate": 0.003},
        "headline_only": True,
    },
]

ARMS = [
    {
        "name": "r1_grpo",
        "label": "R1-GRPO, n = 8",
        "sees": "no critic",
        "overrides": {
            "refine.kind": "none",
            "num_responses": 8,
            "objective.scale_by_std": True,
            "objective.aggregate": "sequence_mean",
            "objective.kl_coef": 0.001,
        },
        "headline": True,
    },
    {
        "name": "r1_dr_grpo",
        "label": "R1-Dr.GRPO, n = 8",
        "sees": "no critic",
        "overrides": DR_GRPO | {"num_responses": 8},
        "headline": True,
    },
    {
        "name": "execution",
        "label": "Critique-GRPO, execution",
        "sees": "the steps recomputed; names the first wrong one and its value",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "execution"},
        "headline": True,
    },
    {
        # As many samples as Critique-GRPO takes of a question that all responses fail; more than it takes of others.
        "name": "r1_dr_grpo_n14",
        "label": "R1-Dr.GRPO, n = 14",
        "sees": "no critic",
        "overrides": DR_GRPO | {"num_responses": 14},
    },
    {
        "name": "indicative",
        "label": "Critique-GRPO, indicative",
        "sees": "the verifier's verdict",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "indicative"},
    },
    {
        "name": "indicative_gt",
        "label": "Critique-GRPO, indicative_gt",
        "sees": "the verifier's verdict and the answer",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "indicative_gt"},
    },
    {
        "name": "execution_no_value",
        "label": "Critique-GRPO, execution without the value",
        "sees": "the steps recomputed; names the first wrong one only",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "execution", "critique.reveals_value": False},
    },
    {
        "name": "cot",
        "label": "Critique-GRPO, cot self-critique",
        "sees": "question and response; the verifier only decides whether the critique is written again",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "cot"},
    },
    {
        "name": "execution_paper",
        "label": 'Critique-GRPO, execution, aggregate="paper"',
        "sees": "the steps recomputed; names the first wrong one and its value",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "execution", "objective.aggregate": "paper"},
        "headline": True,  # since its first three seeds: see above
    },
    {
        "name": "no_critique",
        "label": "refinement without a critique",
        "sees": "no critic; the policy rereads its failed response",
        "overrides": CRITIQUE_GRPO | {"critique.kind": "none"},
    },
    {
        "name": "solution",
        "label": "a correct solution inserted",
        "sees": "no critic; the task's solver answers questions that all responses fail",
        "overrides": CRITIQUE_GRPO | {"refine.kind": "solution"},
    },
]

# Arms whose entropy is plotted: the headline ones, and those with an execution critique.
ENTROPY = ["r1_grpo", "r1_dr_grpo", "execution", "execution_no_value", "execution_paper"]


def get_study():
    """Returns the study: a base configuration, settings, arms and their seeds."""
    arms = [{"headline": False} | arm for arm in ARMS]
    return {
        "config": str(CONFIG),
        "settings": SETTINGS,
        "arms": [arm | {"seeds": range(5 if arm["headline"] else 3)} for arm in arms],
        "entropy": ENTROPY,
    }
