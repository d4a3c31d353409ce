"""How many programs are compiled meanwhile."""

import contextlib

import jax


@contextlib.contextmanager
def compilations():
    """Yields a list that grows by one entry a program compiled, of jax's own small ones as well."""
    compiled = []

    def count(event, seconds, **_):
        compiled.extend([event] * event.endswith("backend_compile_duration"))

    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
