"""Critiques that change with time: the answer first, or the wrong step first.

python launch/study.py --all --workdir=runs/studies --only=curriculum/
"""

from configs.studies import arms

HALF = arms.BASE.num_iterations // 2


def _from(first: str, then: str) -> dict:
    return arms.arm(
        f"{first}_then_{then}",
        f"{first}, from half of the run on {then}",
        f"as {first}, then as {then}",
        {"critique.kind": first, "critique.schedule": ((HALF, then),)},
        against={first: arms.NOTHING, then: arms.NOTHING},
        times=1.1,
    )


def get_study():
    """Returns the study."""
    return arms.study(
        "Does it help to change the kind of critique half-way?",
        paper="Critiques are of one kind throughout.",
        arms=[
            arms.INDICATIVE,
            arms.INDICATIVE_GT,
            arms.EXECUTION,
            _from("indicative_gt", "execution"),
            _from("execution", "indicative"),
        ],
    )
