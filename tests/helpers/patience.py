"""How long a test waits for other processes before it says that they hang."""

import os


def seconds(usual: float) -> float:
    """Returns what is ample on an idle machine, or as many times more as a loaded one is said to need.

    `CGRPO_TEST_SECONDS_FACTOR` says how many, as for the limit of a unit test. What does not hang waits for none of it.
    """
    return usual * max(1.0, float(os.environ.get("CGRPO_TEST_SECONDS_FACTOR", "1")))
