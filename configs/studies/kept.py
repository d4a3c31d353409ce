"""How many refinements of a question are kept, k, beside seven responses.

python launch/study.py --all --workdir=runs/studies --only=kept/
"""

from configs.studies import arms


def get_study():
    """Returns the study."""
    return arms.study(
        "Is one refinement a question enough?",
        paper="k = 1; other numbers only as the ratio of initial to refined rows, in groups of one size.",
        arms=[
            arms.EXECUTION | {"label": "k = 1"},
            *(
                arms.arm(
                    f"k_{kept}",
                    f"k = {kept}",
                    arms.STEPS_AND_VALUE,
                    {"critique.kind": "execution", "refine.num_kept": kept},
                    against={"execution": arms.NOTHING},
                    times=1.1,
                )
                for kept in (2, 4, 7)
            ),
        ],
    )
