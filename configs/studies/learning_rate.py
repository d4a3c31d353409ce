"""Is the comparison one of learning rates? The same arms at a third and at three times the quickstart's.

    python launch/study.py --all --workdir=runs/studies --only=learning_rate/

The quickstart's hyperparameters were chosen for Critique-GRPO. Here every arm has the same three rates and the same
seeds, and none is picked: the table has all.
"""

from configs.studies import arms

SHARES = {"third": ("a third of the rate", 1 / 3), "once": ("the rate", 1.0), "thrice": ("three times the rate", 3.0)}


def _at(one: dict, name: str) -> dict:
    label, share = SHARES[name]
    rate = {} if share == 1 else {"optimizer.learning_rate": round(arms.BASE.optimizer.learning_rate * share, 8)}
    against = {f"{other}_{name}": sign for other, sign in one.get("against", {}).items()}
    return one | {
        "name": f"{one['name']}_{name}",
        "label": f"{one['label']}, {label}",
        "overrides": one["overrides"] | rate,
        "against": against,
    }


def get_study():
    """Returns the study: five methods at three rates."""
    methods = [
        arms.R1_GRPO,
        arms.DR_GRPO | {"against": {"r1_grpo": arms.ABOVE}},
        arms.RAFT | {"against": {"r1_grpo": arms.BELOW}},
        arms.REFINEMENT_FT | {"against": {"r1_grpo": arms.BELOW}},
        arms.EXECUTION | {"against": {"r1_grpo": arms.ABOVE, "dr_grpo": arms.ABOVE}},
    ]
    return arms.study(
        "Does the order of the methods hold at other learning rates?",
        paper="It has one rate, 1e-6; the order is that of Table 2.",
        arms=[_at(one, name) for name in SHARES for one in methods],
    )
