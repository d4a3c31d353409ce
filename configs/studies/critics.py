"""Table 5: critics of different quality, copies of the policy whose lessons hold every fact, taught for a shorter time.

python launch/study.py --all --workdir=runs/studies --only=critics/
"""

from configs.studies import arms

SHARES = (4, 2, 1)  # of the quickstart's lessons: a quarter, half, all


def _critic(part: int) -> dict:
    updates = arms.BASE.warm_start.num_updates // part
    return arms.arm(
        f"critic_{part}",
        f"a critic with 1/{part} of the lessons" if part > 1 else "a critic with all lessons",
        "question and response; the verifier decides whether it writes again",
        {},
        recipe=f"{arms.STEPS}:kind=critic,updates={updates}",
        result="policy",
        against={"dr_grpo": arms.ABOVE, "cot": arms.NOTHING},
        times=2.2,
    )


def get_study():
    """Returns the study."""
    return arms.study(
        "Does the quality of the critic decide, or is a small one enough?",
        paper="Table 5: GPT-4o 47.08, Llama-3.1-405B 46.79, DeepCritic-7B 47.98 (Dr.GRPO 42.66): a small trained "
        "critic is enough.",
        arms=[arms.DR_GRPO, arms.COT, *(_critic(part) for part in SHARES)],
        columns=[
            *arms.COLUMNS,
            arms.metric("verdicts right", "critic/valid", "all"),
            arms.metric("refinements that pass", "refine/success", "all"),
        ],
    )
