"""Initial to refined rows from 7:1 to 1:1, in groups of eight.

python launch/study.py --all --workdir=runs/studies --only=refined_ratio/
"""

from configs.studies import arms


def _ratio(responses: int, kept: int, aggregate: str) -> dict:
    ratio = f"{responses // kept}:1"
    overrides = {"num_responses": responses, "refine.num_kept": kept, "objective.aggregate": aggregate}
    name = f"{aggregate}_{responses // kept}_1"
    best = {} if kept == 1 else {f"{aggregate}_7_1": arms.BELOW}
    return arms.arm(name, f'{ratio}, aggregate="{aggregate}"', arms.STEPS_AND_VALUE, overrides, against=best)


def get_study():
    """Returns the study, with both weights of a refinement: a row's (the release), and n / k rows' (Eq. 3 and 4)."""
    return arms.study(
        "Is one refinement to seven responses the best ratio?",
        paper="Figure of the ratio from 1:1 to 7:1: low ratios raise entropy late and lose; 7:1 is best.",
        arms=[_ratio(n, k, aggregate) for aggregate in ("constant", "paper") for n, k in ((7, 1), (6, 2), (4, 4))],
        columns=[*arms.COLUMNS, arms.metric("entropy, last tenth", "entropy", "last")],
        entropy=["constant_7_1", "constant_3_1", "constant_1_1"],
    )
