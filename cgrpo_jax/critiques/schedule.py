"""From one kind of critique to another in the course of a run: `critique.schedule`, such as rule-based first, then CoT.

critique.schedule = ((0, "indicative_gt"), (100, "cot"))    # from iteration 0, from iteration 100
"""

from collections.abc import Sequence

from cgrpo_jax.errors import UserError

Schedule = Sequence[tuple[int, str]]
WRITTEN = frozenset({"cot", "hint"})  # kinds that a model writes


def kind_at(iteration: int, *, critique: str, schedule: Schedule) -> str:
    """Returns the kind of critique of an iteration: the last entry that has begun, and before the first `critique`.

    Example:
      >>> kind_at(99, critique="none", schedule=((10, "indicative"), (100, "cot")))
      'indicative'
    """
    begun = [kind for first, kind in schedule if first <= iteration]
    return begun[-1] if begun else critique


def kinds(*, critique: str, schedule: Schedule) -> frozenset[str]:
    """Returns all kinds of critique that a run uses."""
    first = frozenset() if schedule and schedule[0][0] == 0 else frozenset([critique])
    return first | {kind for _, kind in schedule}


def check(schedule: Schedule, known: Sequence[str]) -> None:
    """Checks `critique.schedule` by itself.

    Raises:
      UserError: an entry is no (iteration, kind), its kind is unknown, or entries are not in the order of iterations.
    """
    for entry in schedule:
        pair = isinstance(entry, tuple | list) and len(entry) == 2
        if not pair or isinstance(entry[0], bool) or not isinstance(entry[0], int) or entry[0] < 0:
            raise UserError(
                f"critique.schedule: {entry!r} is not (first iteration, kind), such as (100, 'cot'); write "
                "((0, 'indicative'), (100, 'cot'))."
            )
        if entry[1] not in known:
            raise UserError(f"critique.schedule: {entry[1]!r} is unknown; use one of {', '.join(known)}.")
    begins = [first for first, _ in schedule]
    if sorted(set(begins)) != begins:
        raise UserError(f"critique.schedule begins at iterations {begins}; write each once, in their order.")
