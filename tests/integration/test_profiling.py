"""Traces of iterations: what a run writes, what is in it, and that a failing iteration leaves it whole."""

import contextlib
import gzip
import json

import jax
import jax.numpy as jnp
import pytest
import tiny_run

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli
from cgrpo_jax.runtime import profiling, signals, watchdog


def names(folder) -> dict[str, list[dict]]:
    """Returns the events of the one host's trace, by name, with the arguments of each."""
    (file,) = folder.glob("*.xplane.pb")
    found: dict[str, list[dict]] = {}
    for plane in jax.profiler.ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                found.setdefault(event.name, []).append(dict(event.stats))
    return found


def runs(folder) -> list[str]:
    return sorted(path.name for path in (folder / "plugins" / "profile").glob("*"))


def work():
    return jax.jit(lambda x: x @ x)(jnp.ones((8, 8))).block_until_ready()


@pytest.mark.parametrize("given, steps", [("3,4", (3, 4)), ("(3,4)", (3, 4)), ("3", (3,))])
def test_iterations_on_the_command_line(tmp_path, given, steps):
    seen = []
    arguments = tiny_run.arguments(tmp_path, {"profile.steps": given})
    cli.run(lambda config, workdir: seen.append(config), require=("config", "workdir"), argv=arguments)
    assert seen[0].profile.steps == steps


def test_a_run_traces_the_iterations_that_are_asked_for(tmp_path):
    run = tiny_run.run(tmp_path, {"profile.steps": (1,)})
    assert runs(run / "profile") == ["iteration_1"]
    folder = run / "profile" / "plugins" / "profile" / "iteration_1"
    found = names(folder)
    assert [stats["step_num"] for stats in found["iteration"]] == [1]
    assert {"reshard", "rollout", "update"} <= found.keys()
    # What Perfetto opens names them too.
    (file,) = folder.glob("*.trace.json.gz")
    with gzip.open(file) as opened:
        events = json.load(opened)["traceEvents"]
    assert {"iteration", "rollout", "update"} <= {event.get("name") for event in events}

    row = tiny_run.metrics(run)[1]
    assert row["update/flops_per_second"] == row["update/model_flops"] / row["time/update"] > 0
    assert 0 < row["update/packing"] <= 1 and "update/mfu" not in row  # no peak of this processor is known


def test_a_resumed_run_may_trace_others_and_a_stopped_one_leaves_its_trace(tmp_path, monkeypatch, capfd):
    run = tiny_run.run(tmp_path, num_iterations=1)
    assert not (run / "profile").exists()
    begun = []

    @contextlib.contextmanager
    def stopping_within_an_iteration():
        yield lambda **_: bool(begun)

    monkeypatch.setattr(watchdog, "iteration", begun.append)
    monkeypatch.setattr(signals, "catch_stop", stopping_within_an_iteration)
    tiny_run.run(tmp_path, {"profile.steps": (0, 1)})
    assert "profile.steps [0]: these iterations are over, and are not traced" in capfd.readouterr().err
    assert len(tiny_run.metrics(run)) == 1  # the second iteration was stopped
    folder = run / "profile" / "plugins" / "profile" / "iteration_1"
    assert [stats["step_num"] for stats in names(folder)["iteration"]] == [1]


def test_an_iteration_that_fails_is_traced_too(tmp_path):
    profiler = profiling.Profiler(tmp_path, (0, 1))
    with pytest.raises(ZeroDivisionError), profiler.iteration(0):
        raise ZeroDivisionError
    for step in (1, 2):
        with profiler.iteration(step):
            work()
    assert runs(tmp_path) == ["iteration_0", "iteration_1"]


def test_a_trace_that_can_not_be_written_stops_nothing(tmp_path, capfd):
    (tmp_path / "file").write_text("")
    profiler, done = profiling.Profiler(tmp_path / "file" / "profile", (0,)), []
    with profiler.iteration(0):
        done.append(work())
    assert done and "iteration 0 has no trace" in capfd.readouterr().err
    profiler = profiling.Profiler(tmp_path / "profile", (1,))
    with profiler.iteration(1):
        work()
    assert runs(tmp_path / "profile") == ["iteration_1"]


def test_several_processes_write_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    with profiling.Profiler(tmp_path, (5,)).iteration(5):
        work()
    assert runs(tmp_path) == ["iteration_5_process_1"]


@pytest.mark.parametrize("steps", [("range(3,5)",), (-1,), (True,), (1.0,)])
def test_what_is_no_iteration(steps):
    with pytest.raises(UserError, match="must hold numbers of iterations, from 0 on; write 3,4"):
        profiling.check(steps, num_iterations=9)


def test_an_iteration_that_never_comes(tmp_path):
    profiling.check((0, 8), num_iterations=9)
    with pytest.raises(UserError, match="profile.steps 9 never comes: the last of 9 is 8"):
        profiling.check((9,), num_iterations=9)
    with pytest.raises(UserError, match="profile.steps"):
        tiny_run.run(tmp_path, {"profile.steps": (2,)})
