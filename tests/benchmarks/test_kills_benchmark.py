"""The campaign of kills: one of its cases, another at another commit, and what it calls a mistake."""

import os
import random
import signal
import subprocess
import sys

import kills
import paths
import pytest
import tiny_run

from cgrpo_jax.runtime import watchdog


def test_a_run_that_is_killed_somewhere():
    number = random.Random(os.environ.get("CGRPO_TEST_SEED", "")).randrange(len(kills.DRAWN) * len(kills.WAYS))
    command = [sys.executable, kills.__file__, "--places=disk", f"--cases={number}"]
    shared = {"CGRPO_TEST_SHARED": str(tiny_run.shared()), "PYTHONPATH": paths.python_path()}
    done = subprocess.run(command, env=os.environ | shared, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "1 cases, 0 faults" in done.stdout, done.stdout + done.stderr


def test_a_hundred_cases_are_in_all_places_and_of_all_ways():
    numbers = {place: kills.numbers_of(place, 100) for place in kills.PLACES}
    assert {place: len(some) for place, some in numbers.items()} == {"disk": 64, "bucket": 24, "hosts": 12}
    assert all(len(some) >= len(kills.DRAWN) * len(kills.WAYS) for some in numbers.values())


@pytest.mark.parametrize(
    ("way", "statuses", "said", "wrong"),
    [
        ("kill", (-signal.SIGKILL,), ("",), ""),
        ("kill", (1,), ("Traceback",), "status"),
        ("full", (2,), ("error: full",), ""),
        ("full", (2,), ("error: full\nerror: more",), "not one line of process 0"),
        ("full", (2,), ("Traceback\nerror: full",), "not one line of process 0"),
        ("kill", (-signal.SIGKILL, watchdog.STATUS), ("", "error: silent"), ""),
        ("kill", (-signal.SIGKILL, -signal.SIGABRT), ("", "many\nlines"), ""),
        ("kill", (-signal.SIGKILL, None), ("", ""), "process 1 ends with None"),
        ("kill", (-signal.SIGKILL, 1), ("", "Traceback"), "process 1 ends with 1"),
        ("kill", (-signal.SIGKILL, 2), ("", "no line"), "not one line of process 1"),
        ("term", (0, 0), ("", ""), ""),
        ("term", (0, 1), ("", ""), "process 1 ends with 1"),
        ("term", (-signal.SIGTERM,), ("starting",), ""),
        ("term", (-signal.SIGTERM,), ("starting\nfolder: run, new",), "SIGTERM is not heeded"),
    ],
)
def test_what_is_a_mistake(way, statuses, said, wrong):
    found = kills.mistake(way, kills.Ended(statuses, said), 0, interrupted=True)
    assert wrong in found and bool(wrong) == bool(found)


def test_a_run_that_nothing_interrupts_must_end_well():
    assert kills.mistake("kill", kills.Ended((-signal.SIGKILL,), ("",)), 0, interrupted=False)
    assert not kills.mistake("kill", kills.Ended((0,), ("",)), 0, interrupted=False)
