"""The kinds of answer that are compared without a mathematics parser, at once and in time linear in the response."""

from collections.abc import Callable

from cgrpo_jax.rewards.answers import Compared, exact, has_text, trace
from cgrpo_jax.rewards.choice import choice, read_choice
from cgrpo_jax.rewards.numeric import numeric, read_number

READABLE: dict[str, Callable[[str], bool]] = {
    "exact": has_text,
    "trace": has_text,
    "numeric": lambda answer: read_number(answer) is not None,
    "choice": lambda answer: read_choice(answer) is not None,
}
COMPARE: dict[str, Callable[[str, str], Compared]] = {
    "exact": exact,
    "trace": trace,
    "numeric": numeric,
    "choice": choice,
}
