"""The shaping constant gamma: a tenth, ten times and a hundred times the quickstart's.

python launch/study.py --all --workdir=runs/studies --only=gamma/
"""

from configs.studies import arms

TIMES = {"tenth": ("a tenth", 0.1), "tenfold": ("ten times", 10.0), "hundredfold": ("a hundred times", 100.0)}


def get_study():
    """Returns the study."""
    return arms.study(
        "How much does gamma matter?",
        paper="0.1 everywhere; only the curve of the shaping for 0.1 and 0.9 is shown, no accuracies.",
        arms=[
            arms.EXECUTION | {"label": f"gamma = {arms.BASE.objective.gamma:g}"},
            *(
                arms.arm(
                    f"gamma_{name}",
                    f"gamma = {arms.BASE.objective.gamma * times:g}, {label}",
                    arms.STEPS_AND_VALUE,
                    {"critique.kind": "execution", "objective.gamma": round(arms.BASE.objective.gamma * times, 8)},
                    against={"execution": arms.NOTHING},
                )
                for name, (label, times) in TIMES.items()
            ),
        ],
        columns=[*arms.COLUMNS, arms.metric("pi of refined tokens, first tenth", "refined/prob", "first", 4)],
    )
