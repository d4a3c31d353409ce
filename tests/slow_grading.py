"""What worker processes run in the place of math-verify; it imports nothing that takes long."""

import time


def grade(response, answer):
    """Compares the last word; a response with "hang" takes longer than any time limit."""
    if "hang" in response:
        time.sleep(60)
    return float(response.split()[-1:] == [answer]), response, "compared"
