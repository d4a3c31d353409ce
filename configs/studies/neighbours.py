"""Neighbours that learn from more than a reward: SDPO, RLTF-SD, LUFFY.

python launch/study.py --all --workdir=runs/studies --only=neighbours/
"""

from configs.studies import arms

_BESIDE = {"against": {"dr_grpo": arms.NOTHING, "execution": arms.NOTHING}}


def get_study():
    """Returns the study: the values of each method's file, with the task's critiques in the place of its own."""
    return arms.study(
        "How do SDPO, RLTF-SD and LUFFY do beside Critique-GRPO?",
        paper="None of the three is in the paper's tables.",
        arms=[
            arms.DR_GRPO,
            arms.EXECUTION | {"against": {"dr_grpo": arms.ABOVE}},
            arms.SDPO | _BESIDE,
            arms.RLTF_SD | _BESIDE,
            arms.LUFFY | _BESIDE,
        ],
    )
