"""Table 8: GRPO first, then SFT on right refinements of what still fails, beside both at once.

python launch/study.py --all --workdir=runs/studies --only=sequential/
"""

from configs.studies import arms

_GRPO = {key: value for key, value in arms.R1_GRPO["overrides"].items() if key != "refine.kind"}


def get_study():
    """Returns the study."""
    return arms.study(
        "Is it enough to learn from critiques after learning from rewards?",
        paper="Table 8 (Qwen2.5-7B): GRPO 41.18, then SFT on refinements of what fails 43.15, Critique-GRPO 47.08.",
        arms=[
            arms.R1_GRPO,
            arms.arm(
                "sequential",
                "R1-GRPO, then SFT on right refinements",
                arms.STEPS_AND_VALUE,
                _GRPO | {"critique.kind": "execution"},
                recipe=str(arms.RECIPES / "grpo_then_refinement_sft.py"),
                result="learnt",
                against={"r1_grpo": arms.ABOVE, "execution": arms.BELOW},
                times=2.5,
            ),
            arms.EXECUTION | {"against": {"r1_grpo": arms.ABOVE}},
        ],
        columns=[arms.PASS_1, arms.PASS_8],
        measured="pass@1 greedy, pass@8 sampled, on held-out questions.",
    )
