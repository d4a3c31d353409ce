"""Runs of several processes, started by launch/local_pod.sh: the same run as one process, stopped and killed.

Stated times: SIGTERM to one process ends all within a stage of an iteration; when one is killed, the others end within
a minute (`processes.HEARTBEAT_SECONDS` and `_SHUTDOWN_SECONDS`).
"""

import dataclasses
import functools
import os
import pathlib
import signal
import textwrap
import time

import chat_server
import jax
import numpy as np
import patience
import pytest
import tiny_run
from chat_server import good
from meshes import assert_close, rows
from pod import Pod, run

from cgrpo_jax import sharding
from cgrpo_jax.models import params
from cgrpo_jax.rewards import grader
from cgrpo_jax.runs import build_model
from cgrpo_jax.runs.settings import run_settings
from cgrpo_jax.training import checkpoint
from cgrpo_jax.training import optimizer as optimizer_lib
from cgrpo_jax.training import train_step as train_step_lib

server = chat_server.server  # the fixture


def arrays(workdir, mesh):
    """Returns the newest step and its state, on a mesh."""
    cfg = tiny_run.config()
    settings = run_settings(cfg, mesh)
    placed = build_model.load_policy(cfg, settings).placed(params.param_shapes(settings.policy))
    template = optimizer_lib.state_shapes(placed, optimizer())
    with checkpoint.Checkpoints(pathlib.Path(workdir) / "checkpoints") as checkpoints:
        step, state, _ = checkpoints.restore_latest(template)
    return step, state


@functools.cache
def optimizer():
    return optimizer_lib.make_optimizer(learning_rate=optimizer_lib.make_schedule("constant", peak=1e-3))


def assert_bitwise(a, b):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return run(tmp_path_factory.mktemp("pod") / "two", 2, 4, num_iterations=6)


@pytest.mark.parametrize(
    "processes, devices, changes",
    [(1, 8, {}), (2, 4, {"mesh.tensor": 8}), (2, 4, {"mesh.replica": 2})],
    ids=["one process", "tensor across processes", "replicas"],
)
def test_the_same_losses_and_texts(uninterrupted, tmp_path, processes, devices, changes):
    other = run(tmp_path / "run", processes, devices, changes, num_iterations=1)
    first, expected = (tiny_run.repeatable(workdir)[0] for workdir in (other, uninterrupted))
    assert first.keys() == expected.keys()
    for name, value in expected.items():
        # Differences of nearly equal numbers; prompts that share a prefill, and padding, by the data groups there are.
        if name.startswith(("sampling/", "engine/", "update/packing")):
            continue
        np.testing.assert_allclose(first[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
    texts = [row for row in tiny_run.samples(uninterrupted) if row["step"] == 0]
    assert tiny_run.samples(other) == texts
    assert expected["rows_trained"] and expected["loss"]


def test_one_process_asks_the_endpoint_and_all_grade(tmp_path, server):
    critique = "Step 1 is wrong. Conclusion: wrong [END]"
    server.replies({"body": good(critique)})
    changes = {
        "critique.kind": "cot",
        "critic.kind": "endpoint",
        "critic.endpoint.url": server.url,
        "critic.endpoint.model": "m",
        "refine.max_pass": 1.0,
    }
    changes |= {"data.num_eval": 0, "grader.kind": "math", "grader.timeout": 60.0, "grader.num_workers": 1}
    folder = run(tmp_path, 2, 1, changes, num_iterations=1)
    (row,), texts = tiny_run.metrics(folder), tiny_run.samples(folder)
    failed = round(16 * (1 - row["reward"]))
    assert server.seen.qsize() == row["critic/http_requests"] == row["refine/attempted"] == failed > 0
    assert {text["critique"] for text in texts if text["refinement"]} == {critique}
    assert any(sum(text["rewards"]) for text in texts)
    for text in texts:
        for stage in filter(text.get, ("response", "refinement")):
            reward = text["reward" if stage == "response" else "refinement_reward"]
            (grade,) = grader.grade("math", [text[stage]], [text["answer"]], timeout=60.0)
            assert reward == grade.score


def test_what_a_function_raises_on_one_process_ends_all_in_the_same_words_and_loses_nothing(tmp_path):
    """It gets whole questions: two of the four on each process."""
    calls, file = tmp_path / "calls", tmp_path / "reward.py"
    program = """
        import os, pathlib

        def reward(completions, **columns):
            process = os.environ["JAX_PROCESS_ID"]
            with open("{calls}", "a") as file:
                file.write(process + str(len(completions)) + "\\n")
            if pathlib.Path("{calls}").read_text().count("1" + str(len(completions))) > 2:
                raise KeyError("level")
            return [float(len(text) % 2) for text in completions]
    """
    file.write_text(textwrap.dedent(program.format(calls=calls)))
    changes = {"grader.kind": f"{file}:reward", "grader.num_workers": 1, "grader.timeout": 60.0, "data.num_eval": 0}
    changes |= {"refine.kind": "none", "checkpoints.every": 100}
    with Pod(tmp_path / "run", 2, 1, changes, num_iterations=2) as pod:
        status, out = pod.wait()
    errors = {line.partition("error: ")[2] for line in out.splitlines() if "error: " in line}
    assert status == 2 and len(errors) == 1, out
    assert errors.pop().startswith(f"grader '{file}:reward' raised KeyError: 'level' ({file}, line 9); fix it")
    assert sorted(calls.read_text().split()[:4]) == ["04", "04", "14", "14"]
    assert [row["step"] for row in tiny_run.metrics(tmp_path / "run")] == [0]
    file.write_text(file.read_text().replace("> 2", "> 200"))
    run(tmp_path / "run", 2, 1, changes, num_iterations=2)
    assert [row["step"] for row in tiny_run.metrics(tmp_path / "run")] == [0, 1]


def test_sigterm_to_one_process_saves_and_ends_all(uninterrupted, tmp_path):
    workdir = tmp_path / "run"
    with Pod(workdir, 2, 4, num_iterations=6, checkpoint_every=100) as pod:
        pod.at_iteration(1)
        os.kill(pod.process(1), signal.SIGTERM)
        began = time.monotonic()
        status, out = pod.wait()
    assert status == 0 and time.monotonic() - began < patience.seconds(60), out
    assert "stopped by SIGTERM after iteration" in out
    stopped_at, state = arrays(workdir, sharding.make_mesh(tensor=2))
    assert 1 <= stopped_at < 6 and not (workdir / "summary.json").exists()

    # Restored on half the devices, the state is the same, and so is the next update but for rounding.
    smaller = sharding.make_mesh(tensor=2, devices=jax.devices()[:4])
    _, on_four = arrays(workdir, smaller)
    assert_bitwise(on_four, state)
    settings = run_settings(tiny_run.config(), smaller)
    options = dict(
        optimizer=optimizer(),
        settings=dataclasses.replace(settings.learner.loss, aggregate="constant"),
        shape=settings.learner.shape,
        num_questions=4,
        config=settings.policy,
    )
    on_eight, _ = train_step_lib.update(state, rows(), mesh=sharding.make_mesh(tensor=2), **options)
    on_four, _ = train_step_lib.update(on_four, rows(), mesh=smaller, **options)
    assert_close(jax.device_get(on_four.params), jax.device_get(on_eight.params), 1e-5)

    # On the same mesh and processes the run is bitwise the one that was not stopped.
    run(workdir, 2, 4, num_iterations=6, **{"checkpoints.every": 100})
    assert tiny_run.repeatable(workdir) == tiny_run.repeatable(uninterrupted)
    assert tiny_run.samples(workdir) == tiny_run.samples(uninterrupted)
    mesh = sharding.make_mesh(tensor=2)
    assert_bitwise(arrays(workdir, mesh), arrays(uninterrupted, mesh))


@pytest.mark.parametrize("killed", [0, 1])
def test_none_waits_for_one_that_was_killed(tmp_path, killed):
    with Pod(tmp_path / "run", 2, 4, num_iterations=1000) as pod:
        pod.at_iteration(1)
        survivor = pod.process(1 - killed)
        os.kill(pod.process(killed), signal.SIGKILL)
        began = time.monotonic()
        status, out = pod.wait(100)
        seconds = time.monotonic() - began
    assert status not in (0, None) and seconds < patience.seconds(60), (seconds, out)
    assert not pathlib.Path(f"/proc/{survivor}").exists()


def test_a_mistake_ends_all_with_one_line_each(tmp_path):
    with Pod(tmp_path / "run", 2, 4, {"mesh.fsdp": 3}) as pod:
        status, out = pod.wait()
    errors = [line for line in out.splitlines() if "error: " in line]
    assert status == 2 and len(errors) == 2, out
    assert all("takes 6 devices, there are 8; change mesh.replica" in line for line in errors)
    assert not (tmp_path / "run").exists()
