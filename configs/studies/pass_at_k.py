"""pass@k to 256: do rewards or critiques widen what the model can solve, or sharpen it?

python launch/study.py --all --workdir=runs/studies --only=pass_at_k/
"""

from configs.studies import arms

KS = (1, 4, 16, 64, 256)
_SAMPLES = {"eval.k": KS, "eval.num_samples": KS[-1]}


def _evaluated(one: dict) -> dict:
    return one | {"overrides": one["overrides"] | _SAMPLES, "times": 3.0}


def get_study():
    """Returns the study, as the paper samples: temperature 0.6, top-p 0.95, the unbiased estimator."""
    return arms.study(
        "Does Critique-GRPO solve at 256 samples what GRPO does not?",
        paper="AIME24 and AIME25, k from 1 to 256: Critique-GRPO is above GRPO, and GRPO above the base, throughout.",
        arms=[
            _evaluated(arms.DR_GRPO),
            _evaluated(arms.EXECUTION) | {"against": {"dr_grpo": arms.ABOVE}},
        ],
        columns=[
            ("pass@256", ("eval_after", "pass@256"), 1, 3),
            ("before training", ("eval_before", "pass@256"), 1, 3),
            *((f"pass@{k}", ("eval_after", f"pass@{k}"), 1, 3) for k in KS[:-1]),
        ],
        measured="pass@1 greedy, the others of 256 samples a question, on held-out questions.",
    )
