"""How several processes hear of a signal: at once, or a call later in a tick, which waits for none of them."""

import os
import signal

import pytest

from cgrpo_jax.runtime import processes, signals


class Recorded:
    """In the place of `LateLargest`: what was given before."""

    def __init__(self):
        self.before = 0

    def __call__(self, number):
        heard, self.before = self.before, number
        return heard


def test_a_tick_hears_a_call_later_and_all_else_at_once(monkeypatch):
    monkeypatch.setattr(processes, "LateLargest", Recorded)
    monkeypatch.setattr(processes, "largest", lambda number: number)
    with signals.catch_stop() as stopping:
        assert (stopping(late=True), stopping()) == (0, 0)
        os.kill(os.getpid(), signal.SIGTERM)
        assert stopping(late=True) == 0  # it says so to the others, and hears of it next time
        assert stopping() == signal.SIGTERM
        assert stopping(late=True) == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_heard_until_the_block_ends(number):
    before = signal.getsignal(number)
    with signals.catch_stop() as stopping:
        os.kill(os.getpid(), number)
        assert (stopping(), stopping(late=True), stopping()) == (number,) * 3
    assert signal.getsignal(number) is before
