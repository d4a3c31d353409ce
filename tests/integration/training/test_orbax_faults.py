"""What Orbax's and TensorStore's threads print of a save that has failed: nothing beside the one line."""

import subprocess
import sys
import textwrap

import paths

# An exception in what TensorStore calls when it is done, as in any __del__, can't be raised: Python prints it.
PROGRAM = """
    import asyncio, sys
    import tensorstore
    from cgrpo_jax.training import checkpoint

    def reports(report):
        one = type("Reports", (), {"__del__": lambda self: report()})()
        del one

    def to_a_closed_loop():
        loop = asyncio.new_event_loop()
        loop.close()
        loop.call_soon_threadsafe(print)

    def of_a_save():  # which TensorStore ends after the loop that waited for it
        promise, future = tensorstore.Promise.new()
        loop = asyncio.new_event_loop()

        async def wait():
            loop.create_task(ended())
            await asyncio.sleep(0)

        async def ended():
            await future

        loop.run_until_complete(wait())
        loop.close()
        promise.set_result(None)

    of_a_save()
    print("before", file=sys.stderr)
    for _ in range(2):
        checkpoint.Checkpoints(sys.argv[1]).close()
    of_a_save()
    print("after", file=sys.stderr)
    reports(to_a_closed_loop)
    print("then", file=sys.stderr)
    reports(lambda: {}["another"])
"""


def test_a_report_to_a_save_that_has_failed_is_not_printed(tmp_path):
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=paths.ROOT)
    assert done.returncode == 0, done.stderr
    begun, _, rest = done.stderr.partition("before\n")
    quiet, _, others = rest.partition("after\n")
    of_another, _, error = others.partition("then\n")
    assert "Event loop is closed" in begun  # as Python does by itself
    assert "closed" not in quiet
    assert "Event loop is closed" in of_another and "in to_a_closed_loop" in of_another
    assert "KeyError: 'another'" in error
