"""The studies in the order in which `python launch/study.py --all --workdir=DIR` runs them, while its hours last."""

import pathlib

ORDER = (
    "table_2",
    "corrupted_critiques",
    "critic_errors",
    "ladder",
    "refined_ratio",
    "sequential",
    "neighbours",
    # What is cut first, from the end, if hours are short:
    "learning_rate",
    "persistent_failures",
    "critics",
    "weak_to_strong",
    "gamma",
    "kept",
    "critique_length",
    "curriculum",
    "entropy_and_length",
    "pass_at_k",
    "cost",
)


def get_order():
    """Returns the paths of the study files."""
    return [str(pathlib.Path(__file__).resolve().with_name(f"{name}.py")) for name in ORDER]
