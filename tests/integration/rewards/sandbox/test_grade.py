"""What takes longer than a unit test may, of tests/rewards/sandbox/test_grade.py."""

import signal

import graded
import pytest
from graded import ADD, SUM

from cgrpo_jax.rewards.sandbox import sandbox
from cgrpo_jax.rewards.sandbox.grade import grade

pytestmark = graded.MARKS


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL], ids=["hangs", "dies"])
@pytest.mark.parametrize("kind", ["scripts", "asserts"])
def test_a_program_whose_launcher_hangs_or_dies_has_no_verdict(monkeypatch, kind, number):
    """It does as its second sandbox is asked for: the first one, which is right, ends with it."""
    program, answer = "def add(a, b): return a + b", ADD
    if kind == "scripts":  # the first must not have ended by then
        program, answer = "import time\ntime.sleep(0.5)\nprint(sum(map(int, input().split())))", SUM
    boxes, isolated = [], sandbox.isolated()

    class Box(sandbox.Sandbox):
        def __init__(self, *args, **kwargs):
            if len(boxes) == 1:
                launcher = sandbox._launcher(isolated)
                launcher._process.send_signal(number)
                if number == signal.SIGKILL:
                    launcher._process.wait()
            boxes.append(self)
            super().__init__(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(sandbox, "Sandbox", Box)
        with pytest.raises(sandbox.SandboxError, match="no answer within" if number == signal.SIGSTOP else "sandbox"):
            grade(program, answer, seconds=1.0)
    assert grade(program, answer, seconds=60)[0] == 1.0
