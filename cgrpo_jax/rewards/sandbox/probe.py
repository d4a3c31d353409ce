"""The least that a program does: `sandbox` runs it to see what the machine allows."""

import os

NO_LIBRARY = 3  # exit status


def main(job):
    """Imports a module, as programs do: the user that they run as may not be let into Python's folder."""
    try:
        import colorsys  # noqa: F401
    except ImportError:
        os._exit(NO_LIBRARY)
