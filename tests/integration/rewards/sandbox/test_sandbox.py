"""What takes longer than a unit test may, of tests/rewards/sandbox/test_sandbox.py."""

import sys

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
