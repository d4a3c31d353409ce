"""When a process that hangs ends, and what it says: by the seconds in which nothing ends, here and elsewhere."""

import dataclasses
import itertools
import time

import pytest

from cgrpo_jax.runtime import processes, watchdog
from cgrpo_jax.runtime.watchdog import SILENT_SECONDS, STATUS, Limits, State, Watch

LIMITS = Limits(stall=60.0, compile=600.0)
ROLLOUT = State(steps=12, events=30, stage="rollout", iteration=3)


def other(beat, steps=12, stage="rollout", closed=False, **more):
    """What another process says of itself, for the `beat`th time."""
    return dataclasses.asdict(State(steps=steps, stage=stage, iteration=3, **more)) | {"beat": beat, "closed": closed}


def looks(watch, seconds, state=ROLLOUT, limits=LIMITS, said=lambda second: {}, **kw):
    """Returns the second at which a watch ends the process, and what it says; None where it does not."""
    for second in range(seconds):
        if found := watch.look(1.0, state, limits, said=said(second), **kw):
            return second, *found
    return None


def test_a_process_ends_when_nothing_has_ended_for_too_long():
    second, line, status = looks(Watch(), 100)
    assert (second, status) == (61, STATUS)
    assert line == (
        "nothing has ended for 61 s in rollout of iteration 3 (compute.stall_timeout 60); what was saved stays, and "
        "the same command goes on from it"
    )


def test_it_goes_on_while_something_ends():
    watch = Watch()
    for number in range(10):
        assert not looks(watch, 50, dataclasses.replace(ROLLOUT, events=number))


def test_a_compilation_has_a_limit_of_its_own():
    compiling = dataclasses.replace(ROLLOUT, compiling=True)
    second, line, _ = looks(Watch(), 1000, compiling)
    assert second == 601 and line.startswith("a program is being compiled for 601 s in rollout of iteration 3")
    assert "compute.compile_timeout 600" in line


@pytest.mark.parametrize("compiling", [False, True])
def test_0_is_no_limit(compiling):
    assert not looks(Watch(), 10_000, dataclasses.replace(ROLLOUT, compiling=compiling), Limits())


@pytest.mark.parametrize(
    "steps, words",
    [
        (7, "; process 1 is behind, in update of iteration 3"),
        (20, "; this process, 0, is behind"),
        (12, "; no process is behind"),
    ],
)
def test_it_says_who_is_behind(steps, words):
    found = looks(Watch(here=0), 100, said=lambda second: {0: other(second), 1: other(second, steps, "update")})
    assert f"(compute.stall_timeout 60){words};" in found[1]


def test_it_waits_for_another_that_goes_on():
    """That one may grade, or read a file, for all: each row and file is an event."""
    assert not looks(Watch(here=0), 500, said=lambda second: {1: other(second, events=second // 50)})
    second, _, _ = looks(Watch(here=0), 500, said=lambda second: {1: other(second, events=min(second, 100) // 50)})
    assert second == 161


@pytest.mark.parametrize("closed, ends", [(False, 601), (True, 61)])
def test_it_waits_for_another_that_compiles(closed, ends):
    """What this process has read from its cache, another may have to compile."""
    second, line, _ = looks(Watch(here=0), 1000, said=lambda second: {1: other(second, compiling=True, closed=closed)})
    assert second == ends and ("a program is being compiled" in line) == (not closed)


def test_one_that_says_nothing_is_taken_to_be_dead_long_before_a_limit():
    def said(second):
        return {0: other(second), 1: other(min(second, 10), stage="reshard")}

    second, line, status = looks(Watch(here=0), 100, limits=Limits(), said=said)
    assert 10 + SILENT_SECONDS < second < 15 + SILENT_SECONDS and status == STATUS
    assert line.startswith("process 1, last in reshard of iteration 3, has said nothing for ")
    assert "while this process was in rollout of iteration 3" in line


def test_one_that_has_finished_need_say_nothing():
    assert not looks(Watch(here=0), 500, limits=Limits(), said=lambda second: {1: other(5, closed=True)})


def test_where_process_0_does_not_answer_it_is_what_hangs():
    def said(second):
        return {0: other(second)} if second < 10 else None

    second, line, status = looks(Watch(here=1), 100, limits=Limits(), said=said)
    assert 9 + SILENT_SECONDS <= second < 13 + SILENT_SECONDS and status == STATUS
    assert line.startswith("process 0 has not answered for ")


def test_answers_that_come_seldom_are_answers():
    assert not looks(
        Watch(here=1), 500, limits=Limits(), said=lambda second: {0: other(second)} if second % 20 == 0 else None
    )


def test_anothers_mistake_ends_it_when_it_has_had_the_time_to_notice():
    second, line, status = looks(Watch(here=0), 100, limits=Limits(), ended={1: "data.train x is not there"})
    assert 5 < second < 20 and (line, status) == ("process 1 ended: data.train x is not there", 2)


def test_its_line_comes_before_jax_aborts():
    """JAX does from half of its time on: within that, the store is read three times after the silence."""
    assert SILENT_SECONDS + 3 * watchdog._LOOK_SECONDS < processes.HEARTBEAT_SECONDS / 2
    assert SILENT_SECONDS + 3 * watchdog._LOOK_SECONDS < 60  # others end within a minute


def test_what_goes_on_says_where_it_is(monkeypatch):
    monkeypatch.setattr(watchdog, "_state", State())
    watchdog.iteration(4)
    with watchdog.stage("update"):
        assert watchdog._state.where == "update of iteration 4"
        watchdog.alive()
        watchdog._on_compile("/jax/core/compile/jaxpr_to_mlir_module_duration", 0.1)
        assert watchdog._state.compiling
        watchdog._on_compile("/jax/core/compile/backend_compile_duration", 0.1)
        assert not watchdog._state.compiling
        watchdog.tick()
    assert watchdog._state.stage == "bookkeeping"
    assert (watchdog._state.steps, watchdog._state.events) == (4, 7)  # alike on all processes, and all


def test_jax_says_when_it_compiles(monkeypatch):
    import jax

    seen = []
    monkeypatch.setattr(watchdog, "_update", lambda **changes: seen.append(changes.get("compiling", False)))
    jax.monitoring.register_event_duration_secs_listener(watchdog._on_compile)
    try:
        salt = time.monotonic()  # a program that nobody has compiled
        jax.jit(lambda x: x * salt + 1)(1.0)
    finally:
        jax.monitoring.unregister_event_duration_listener(watchdog._on_compile)
    # Each is said as often as it listens: the process may have begun to before.
    assert [said for said, _ in itertools.groupby(seen)][-2:] == [True, False]
