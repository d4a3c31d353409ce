"""Worker processes, apart from what rewards do with them."""

import signal

import pytest

from cgrpo_jax.rewards import worker_pool
from cgrpo_jax.rewards.worker_pool import Workers


def test_ctrl_c_reaches_no_worker_from_its_start_on():
    """A terminal sends it to all processes: one that still imports would end with a traceback of its own."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    with Workers(1, timeout=60.0) as workers:
        blocked = workers.call(signal.pthread_sigmask, signal.SIG_BLOCK, ()).outcome().value
    assert signal.SIGINT in blocked
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


class Argument:
    """What fails where a worker that starts reads it, as a lock does that a closed pool has taken away."""

    def __init__(self, function, given):
        self.call = function, (given,)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function, given, said", [(open, "/none", ""), (int, "x", "ValueError: invalid literal")])
def test_a_worker_whose_pool_is_closed_while_it_starts_says_nothing(capfd, function, given, said):
    process = worker_pool._SpawnWithoutMain().Process(target=print, args=(Argument(function, given),))
    process.start()
    process.join()
    err = capfd.readouterr().err
    assert process.exitcode == 1 and (said in err if said else not err)
