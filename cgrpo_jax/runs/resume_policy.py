"""Which keys of a configuration may change when a run, or the results of another command, resume. All others may not.

Each key says so itself, and why (`may_change` and `because` in schema.py and the sections).
"""

from cgrpo_jax.runs.keys import Resumed, items
from cgrpo_jax.runs.schema import Config


def may_change(resumed: Resumed) -> tuple[str, ...]:
    """Returns the dotted names of the keys with another value of which this may resume."""
    return tuple(name for name, key, _ in items(Config()) if key.may_change & resumed)


TRAINING = may_change(Resumed.TRAINING)
EVALUATION = may_change(Resumed.EVALUATION)
DIAGNOSIS = may_change(Resumed.DIAGNOSIS)
COLLECTION = may_change(Resumed.COLLECTION)
