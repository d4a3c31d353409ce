"""What Orbax's and TensorStore's threads print of a save that has failed: nothing beside the one line."""

import subprocess
import sys
import textwrap

import paths

# An exception in a thread of TensorStore, as in any __del__, can't be raised: Python prints it. The first is of a save
# that has ended, the second any other.
PROGRAM = """
    import asyncio, sys
    from cgrpo_jax.training import checkpoint

    def reports(report):
        one = type("Reports", (), {"__del__": lambda self: report()})()
        del one

    def to_a_closed_loop():
        loop = asyncio.new_event_loop()
        loop.close()
        loop.call_soon_threadsafe(print)

    reports(to_a_closed_loop)
    print("before", file=sys.stderr)
    for _ in range(2):
        checkpoint.Checkpoints(sys.argv[1]).close()
    reports(to_a_closed_loop)
    print("after", file=sys.stderr)
    reports(lambda: {}["another"])
"""


def test_a_report_to_a_save_that_has_failed_is_not_printed(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT)
    assert done.returncode == 0, done.stderr
    begun, _, rest = done.stderr.partition("before\n")
    quiet, _, others = rest.partition("after\n")
    assert "Event loop is closed" in begun  # as Python does by itself
    assert "closed" not in quiet and "KeyError: 'another'" in others
