"""What takes longer than a unit test may, of tests/rewards/sandbox/test_sandbox.py."""

import os
import signal
import sys
import time

import pytest
import sandbox_cases
from sandbox_cases import printed

from cgrpo_jax.rewards.sandbox import sandbox

isolate = sandbox_cases.isolate  # the fixture
runner = sandbox_cases.runner  # the fixture

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux"),
    pytest.mark.usefixtures("nothing_is_left"),
]


def test_a_launcher_that_was_killed_is_replaced(runner, isolate):
    assert printed(runner, isolate, "os.write(1, b'1')") == ["1"]
    launcher = sandbox._launcher(isolate)
    launcher._process.kill()
    launcher._process.wait()
    assert printed(runner, isolate, "os.write(1, b'2')") == ["2"]
    assert sandbox._launcher(isolate) is not launcher


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "dies"])
def test_what_a_launcher_takes_along_has_no_status(runner, isolate, number):
    """One program had ended before, the other runs. A launcher that hangs is waited for to the deadline."""
    start = lambda code, **more: sandbox.Sandbox(runner, {"code": code}, isolate=isolate, **more)  # noqa: E731
    ended = start("import os; os._exit(7)")
    assert ended.wait(20)
    read, write = os.pipe()
    with open(read, "rb") as output, open(write, "wb") as end:
        runs = start("import os, time; os.write(1, b'.'); time.sleep(1000)", stdout=end.fileno())
        assert output.read(1) == b"."
    launcher = sandbox._launcher(isolate)
    launcher._process.send_signal(number)
    if number == signal.SIGSTOP:
        with pytest.raises(sandbox.SandboxError, match="could not be set up: Python gave no answer within 0"):
            start("", deadline=time.monotonic() + 0.5)
    assert launcher._process.wait(20) is not None and runs.wait(20)
    assert ended.stop() == 7
    for _ in range(2):
        with pytest.raises(sandbox.SandboxError, match="killed from outside"):
            runs.stop()
    assert printed(runner, isolate, "os.write(1, b'2')") == ["2"]
    assert sandbox._launcher(isolate) is not launcher
