"""Cost: Critique-GRPO beside GRPO with as many or more samples.

python launch/study.py --all --workdir=runs/studies --only=cost/
"""

from configs.studies import arms


def get_study():
    """Returns the study: Dr.GRPO with 8, 9 (about as many tokens as Critique-GRPO) and 14 responses a question."""
    dearer = {"against": {"dr_grpo": arms.NOTHING}}
    return arms.study(
        "Would as many tokens of plain samples do as well?",
        paper="Appendix B: critiques and refinements cost 2 % (7B) to 6.5 % (8B) of GRPO's time; GRPO with more "
        "samples is not compared.",
        arms=[
            arms.DR_GRPO,
            arms.dr_grpo_of(9) | dearer,
            arms.dr_grpo_of(14) | dearer,
            arms.EXECUTION | {"against": {name: arms.ABOVE for name in ("dr_grpo", "dr_grpo_n9", "dr_grpo_n14")}},
        ],
        columns=[*arms.COLUMNS, ("seconds of training", ("seconds",), 1, 0)],
    )
