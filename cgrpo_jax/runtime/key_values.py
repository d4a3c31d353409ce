"""What processes say to each other without a device: texts in the key-value store of JAX's distributed runtime.

Process 0 holds the store. Nothing here compiles or waits for a collective operation, so it works where processes have
other devices, programs or configurations, and where the main thread hangs.
"""

import json
from typing import Any

_PREFIX = "cgrpo_jax"
ENDED = "ended"  # under it a process says why it ends


def _state() -> Any:
    """Returns JAX's own record of the processes; no public name leads to its store."""
    from jax._src import distributed  # not when this module is imported, which takes no time

    return distributed.global_state


def joined() -> bool:
    """Returns whether this process has joined those that work together."""
    return _state().client is not None


def place() -> tuple[int, int]:
    """Returns the number of this process and how many there are; touches no device."""
    state = _state()
    return (state.process_id, state.num_processes) if joined() else (0, 1)


def put(name: str, value: Any) -> None:
    """Says a JSON value under a name; what this process said under it before is replaced."""
    _state().client.key_value_set(f"{_PREFIX}/{name}/{place()[0]}", json.dumps(value), allow_overwrite=True)


def read(name: str) -> dict[int, Any]:
    """Returns what processes have said under a name up to now, by their numbers."""
    found = _state().client.key_value_dir_get(f"{_PREFIX}/{name}/")
    return {int(key.rpartition("/")[2]): json.loads(value) for key, value in found}
