"""Worker processes, apart from what rewards do with them."""

import signal

from cgrpo_jax.rewards.worker_pool import Workers


def test_ctrl_c_reaches_no_worker_from_its_start_on():
    """A terminal sends it to all processes: one that still imports would end with a traceback of its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with Workers(1, timeout=60.0) as workers:
        blocked = workers.call(signal.pthread_sigmask, signal.SIG_BLOCK, ()).outcome().value
    assert signal.SIGINT in blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
