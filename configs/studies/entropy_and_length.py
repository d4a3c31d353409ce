"""Entropy and length of responses while training goes on; all of its runs are Table 2's.

python launch/study.py --all --workdir=runs/studies --only=entropy_and_length/
"""

from configs.studies import arms


def get_study():
    """Returns the study."""
    return arms.study(
        "Does Critique-GRPO keep the entropy that GRPO loses, and do responses grow?",
        paper="GRPO's entropy falls to near 0 at once, Dr.GRPO's by step 150, Critique-GRPO's stays above; responses "
        "hardly grow (7B) or shrink (Qwen3-8B).",
        seeds=5,
        arms=[
            arms.R1_GRPO,
            arms.DR_GRPO | {"against": {"r1_grpo": arms.ABOVE}},
            arms.EXECUTION | {"against": {"r1_grpo": arms.ABOVE, "dr_grpo": arms.ABOVE}},
        ],
        columns=[
            arms.metric("entropy, last tenth", "entropy", "last", 4),
            arms.metric("first tenth", "entropy", "first", 4),
            arms.metric("of refinements, last tenth", "refined/entropy", "last", 4),
            arms.metric("tokens of a response, first tenth", "completions/mean_length", "first", 2),
            arms.metric("last tenth", "completions/mean_length", "last", 2),
        ],
        measured="entropy in nats at the trained tokens of initial responses and of refinements; all tokens of a "
        "response, its end included.",
        entropy=["r1_grpo", "dr_grpo", "execution"],
    )
