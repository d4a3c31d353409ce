"""What worker processes run in the place of math-verify; it imports nothing that takes long."""

import os
import pathlib
import time


def grade(response, answer):
    """Compares the last word. "hang" takes longer than any time limit, "die" ends the worker, "late" raises.

    "once FILE" ends the worker if there is no such file, and leaves one.
    """
    words = response.split()
    if "hang" in words:
        time.sleep(60)
    if "late" in words:
        raise TimeoutError("a service is slow")
    if "once" in words and not pathlib.Path(words[1]).exists():
        pathlib.Path(words[1]).touch()
        os._exit(9)
    if "die" in words:
        os._exit(9)
    return float(words[-1:] == [answer]), response, "compared"
