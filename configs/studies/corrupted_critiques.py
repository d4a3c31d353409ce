"""Shuffled and inverted critiques (appendix C): is it what a critique says that teaches?

python launch/study.py --all --workdir=runs/studies --only=corrupted_critiques/
"""

from configs.studies import arms

_WORSE = {"execution": arms.BELOW}


def _wrong(how: str, what: str) -> dict:
    overrides = {"critique.kind": "execution", "critique.corruption": how}
    return arms.arm(how, f"Critique-GRPO, execution, {how}", what, overrides, against=_WORSE, times=1.2)


def get_study():
    """Returns the study, on both tasks."""
    return arms.study(
        "Is it what a critique says that teaches, or that there is one?",
        paper="Appendix C: with inverted verdicts the entropy explodes, accuracy falls; shuffled words are not in it.",
        settings=[arms.CHAINS, arms.CODE],
        arms=[
            arms.EXECUTION,
            _wrong("inverted", "the same with the opposite verdict; the value stays"),
            _wrong("shuffled", "its words in random order, the verdict last")
            | {"against": {"execution": arms.NOTHING}},
            arms.NO_CRITIQUE | {"against": {"execution": arms.NOTHING}},
        ],
        columns=[*arms.COLUMNS, arms.metric("entropy, last tenth", "entropy", "last")],
        entropy=["execution", "inverted", "shuffled"],
    )
