"""Table 7: a frozen copy with half of the policy's lessons writes the refinements.

python launch/study.py --all --workdir=runs/studies --only=weak_to_strong/
"""

from configs.studies import arms


def get_study():
    """Returns the study; critiques tell the answer, as the paper's do there."""
    return arms.study(
        "Do refinements of a weaker model help?",
        paper="Table 7 (Qwen3-8B, refined by its base): GRPO 63.75, weak refinements 65.55, its own 68.13.",
        arms=[
            arms.R1_GRPO,
            arms.INDICATIVE_GT | {"against": {"r1_grpo": arms.ABOVE}},
            arms.arm(
                "weak_refiner",
                "Critique-GRPO, indicative_gt, refined by a copy with half of the lessons",
                arms.INDICATIVE_GT["sees"],
                arms.INDICATIVE_GT["overrides"],
                recipe=f"{arms.STEPS}:kind=refiner,updates={arms.BASE.warm_start.num_updates // 2}",
                result="policy",
                against={"r1_grpo": arms.ABOVE, "indicative_gt": arms.BELOW},
                times=1.6,
            ),
        ],
        columns=[*arms.COLUMNS, arms.metric("refinements that pass", "refine/success", "all")],
    )
