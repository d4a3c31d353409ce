"""A critic that errs: of 0, 10, 20 and 40 % of the failed responses it says what it said of another one.

python launch/study.py --all --workdir=runs/studies --only=critic_errors/
"""

from configs.studies import arms


def _errs(percent: int) -> dict:
    return arms.arm(
        f"errors_{percent}",
        f"Critique-GRPO, execution, {percent} % of another response",
        f"as execution; of {percent} % of the responses what was said of another wrong one",
        {"critique.kind": "execution"},
        recipe=f"{arms.STEPS}:kind=errors,share={percent / 100}",
        result="policy",
        against={"execution": arms.NOTHING, "dr_grpo": arms.ABOVE},
        times=1.4,
    )


def get_study():
    """Returns the study: shares of errors on chains."""
    return arms.study(
        "How many errors of its critic does Critique-GRPO bear?",
        paper="Not measured as such: 60.06 % (Qwen2.5-7B) and 50.17 % (Qwen3-8B) of the critiques are valid, and "
        "Critique-GRPO beats GRPO with them.",
        arms=[
            arms.DR_GRPO,
            arms.EXECUTION | {"against": {"dr_grpo": arms.ABOVE}},
            *(_errs(percent) for percent in (10, 20, 40)),
        ],
        columns=[*arms.COLUMNS, arms.metric("refinements that pass", "refine/success", "all")],
    )
