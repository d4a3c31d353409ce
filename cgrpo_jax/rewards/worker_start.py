"""What a grading worker runs first: one whose program has done with it before it has started ends without a word.

A pool that is closed while workers start has taken away what they are about to open. Python would print a stack trace
of that beside what the program says, which needed no more of them.
"""

import sys

_DONE_WITH = (FileNotFoundError, EOFError, ConnectionError)


def _hook(kind, error, trace) -> None:
    if not issubclass(kind, _DONE_WITH):
        sys.__excepthook__(kind, error, trace)


if __name__ == "__mp_main__":  # in a worker
    sys.excepthook = _hook
