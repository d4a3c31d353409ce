"""Longer critiques that say no more (appendix C): each is shown twice.

python launch/study.py --all --workdir=runs/studies --only=critique_length/
"""

from configs.studies import arms


def get_study():
    """Returns the study; the warm start has seen critiques once each, so that the longer form is new to it."""
    prompt = arms.BASE.prompts.refine.replace("{critique}", "{critique} {critique}")
    return arms.study(
        "Do longer critiques that say the same do worse?",
        paper="Appendix C: critiques of 683 tokens 47.08, of 2,079 tokens 46.00.",
        arms=[
            arms.EXECUTION,
            arms.arm(
                "twice",
                "Critique-GRPO, execution, said twice",
                arms.STEPS_AND_VALUE,
                {"critique.kind": "execution", "prompts.refine": prompt},
                against={"execution": arms.BELOW},
                times=1.1,
            ),
        ],
        columns=[*arms.COLUMNS, arms.metric("refinements that pass", "refine/success", "all")],
    )
