"""Is the time of a function linear in the length of its text?"""

import time
from collections.abc import Callable

FACTOR = 4  # how many times as many characters a long text has
MOST = 3 * FACTOR  # times as long that it may take; were time a square, it would be FACTOR ** 2
NOTHING = 0.02  # seconds of which nothing can be said


def is_linear(function: Callable[[str], object], piece: str, *, short: int = 3000) -> bool:
    """Does a text of one piece, again and again, take at most in proportion to its length?

    Args:
      function: takes the text.
      piece: what the text repeats.
      short: characters of the short text.
    """
    for _ in range(3):  # a machine may be busy
        took = [seconds(function, piece, length) for length in (short, short * FACTOR)]
        if took[1] <= max(MOST * took[0], NOTHING):
            return True
    return False


def seconds(function: Callable[[str], object], piece: str, length: int) -> float:
    text = (piece * (length // len(piece) + 1))[:length]
    began = time.process_time()
    function(text)
    return time.process_time() - began
