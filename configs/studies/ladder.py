"""Table 6: the ladder from GRPO to Critique-GRPO, one change at a time.

python launch/study.py --all --workdir=runs/studies --only=ladder/
"""

from configs.methods import ladder_3, ladder_4, ladder_5
from configs.studies import arms


def _rung(name: str, label: str, method, below: str) -> dict:
    overrides = arms.values_of(method, critique__kind="execution")
    return arms.arm(name, label, arms.STEPS_AND_VALUE, overrides, against={below: arms.ABOVE}, times=1.2)


def get_study():
    """Returns the study; critiques are of execution, the best that the task has, where the paper's are GPT-4o's."""
    return arms.study(
        "Does each step from GRPO to Critique-GRPO add something?",
        paper="Table 6 (Qwen2.5-7B): R1-GRPO 41.18, without KL (the number of Dr.GRPO) 42.66, one random refinement "
        "43.26, the best refinement 43.95, shaping 47.08. The last arm, the weights of Eq. 3 and 4, is not in it.",
        arms=[
            arms.R1_GRPO,
            arms.DR_GRPO | {"against": {"r1_grpo": arms.ABOVE}},
            _rung("random_refinement", "one random refinement", ladder_3, "dr_grpo"),
            _rung("best_refinement", "the best refinement", ladder_4, "random_refinement"),
            _rung("shaped", "its ratio shaped", ladder_5, "best_refinement"),
            arms.EXECUTION | {"label": 'aggregate="paper"', "against": {"shaped": arms.NOTHING}},
        ],
    )
