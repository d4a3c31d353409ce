"""Modules of the user's own that programs may import: read, and imported once, before anything depends on them."""

import pathlib
from collections.abc import Sequence

from cgrpo_jax.errors import UserError
from cgrpo_jax.rewards.sandbox import grade, modules, sandbox
from cgrpo_jax.rewards.worker_pool import MEMORY_LIMIT, Workers

_LEAST_SECONDS = 30.0  # of the check: a busy machine says nothing of a module


def load(paths: Sequence[str | pathlib.Path], *, timeout: float = 5.0, numpy: bool = False) -> modules.Modules:
    """Returns modules that a program can import, in its sandbox.

    Args:
      paths: of each its file, or its folder.
      timeout: seconds of a program, in which a module must be imported. The check itself waits 30 at the least, so that
        it can say how long an import takes.
      numpy: programs may import NumPy.

    Raises:
      UserError: one can't be read or imported, or not in the time of a program; the message is one line.

    Example:
      >>> load(["lib/hydro.py"]).names
      ('hydro',)
    """
    found = modules.read(paths)
    if found.names:
        sandbox.check()
        seconds = max(timeout, _LEAST_SECONDS)
        with Workers(
            1, timeout=2 * seconds * len(found.names), start=grade.start, arguments=(MEMORY_LIMIT,)
        ) as workers:
            outcome = workers.call(grade.unimportable, found, seconds, numpy, timeout).outcome()
        if why := outcome.failure or outcome.value:
            raise UserError(f"code.modules: a program can't import {why}; fix the module, or leave it out.")
    return found
