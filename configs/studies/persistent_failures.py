"""Tables 1 and 12: what refinements of failed responses achieve before any training, by kind of critique.

python launch/study.py --all --workdir=runs/studies --only=persistent_failures/
"""

from configs.studies import arms

_KINDS = {
    "indicative": (arms.INDICATIVE, {}),
    "indicative_gt": (arms.INDICATIVE_GT, {"indicative": arms.NOTHING}),
    "cot": (arms.COT, {"indicative": arms.ABOVE}),
    "execution": (arms.EXECUTION, {"indicative": arms.ABOVE}),
    "none": (arms.NO_CRITIQUE, {"indicative": arms.NOTHING}),
}


def get_study():
    """Returns the study: 256 training questions, four responses each, of the weights that all arms start from."""
    return arms.study(
        "Which critiques make refinements of failed responses right?",
        paper="Tables 1 and 12: after valid CoT critiques 36.47 % of the refinements are right (Qwen2.5-7B; Qwen3-8B "
        "10.63 %), after indicative ones 2 to 4 %. Execution stands for a critic that is right.",
        arms=[
            arms.arm(
                kind,
                f"refined after: {kind}",
                one["sees"],
                {},
                recipe=f"{arms.STEPS}:kind=critiques,critique={kind}",
                result="rows",
                against=against,
                times=0.4,
            )
            for kind, (one, against) in _KINDS.items()
        ],
        columns=[
            ("failed responses fixed", ("fix_rate", "value"), 1, 3),
            ("pass@1 of responses", ("pass@1", "value"), 1, 3),
            ("verdicts right", ("verdict_accuracy", "value"), 1, 3),
        ],
        measured="of the refinements of wrong responses, right ones; of the responses, right ones; of critiques that a "
        "model wrote, those whose verdict agrees with the verifier; on training questions.",
    )
