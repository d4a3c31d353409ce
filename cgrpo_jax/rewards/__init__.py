"""What is right: graders of final answers, programs, checklists, and a user's own functions; see README.md.

Light: grading workers import modules of this package, and must not pay for JAX or the rest of it.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cgrpo_jax.rewards.grader import KINDS, Grade, Grader, Pending, check_gold, check_kind, grade

__all__ = ["KINDS", "Grade", "Grader", "Pending", "check_gold", "check_kind", "grade"]


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cgrpo_jax.rewards import grader

    return getattr(grader, name)
