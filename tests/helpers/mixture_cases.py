"""What the tests of datasets/test_mixture share with those that take longer."""

import json
import os
import socket
import subprocess
import sys
import textwrap

import pytest
import tiny_run
import xla_flags

# Draws steps from a given one on and waits to be killed: what is left is its file.
PROCESS = """
    import json, os, sys
    import jax
    from cgrpo_jax.datasets import mixture as order
    from cgrpo_jax.runtime import processes
    from cgrpo_jax.records import Problem
    first, last, file = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    processes.start(distributed="JAX_PROCESS_ID" in os.environ)
    problems = [Problem(i, f"q{i}", "", source="ab"[i % 3 == 0]) for i in range(24)]
    mixture = order.parse_mixture(sys.argv[4])
    with open(f"{file}.{jax.process_index()}", "a") as out:
        for step in range(first, last):
            picked = order.draw(problems, mixture, seed=1, step=step, batch_size=4)
            out.write(json.dumps([problem.question for problem in picked]) + chr(10))
            out.flush()
    sys.stdout.write("done" + chr(10))
    sys.stdout.flush()
    sys.stdin.read()
"""


def steps(folder, name, first, last, mixture, *, processes):
    """Runs processes that draw some steps and are killed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": xla_flags.flags()}
    if processes > 1:
        environment |= {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": str(processes)}
    command = [sys.executable, "-c", textwrap.dedent(PROCESS), str(first), str(last), str(folder / name), mixture]
    numbers = [{"JAX_PROCESS_ID": str(k)} if processes > 1 else {} for k in range(processes)]
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    started = [subprocess.Popen(command, env=environment | n, **pipes) for n in numbers]
    try:
        assert [process.stdout.readline() for process in started] == ["done\n"] * processes
    finally:
        for process in started:
            process.kill()
            process.communicate()


CHANGES = {
    "data.kind": "jsonl",
    "critique.step_checker": "equations",
    "grader.kind": "numeric",
    "refine.kind": "none",
    "data.eval": "",
}


@pytest.fixture(scope="module")
def question_files(tmp_path_factory):
    """Two files of six questions each; two at a time, an iteration reads four: an epoch ends with the third."""
    folder = tmp_path_factory.mktemp("questions")
    for name, sign in (("adds", "+"), ("muls", "*")):
        rows = [{"question": f"{k}{sign}2", "answer": str(eval(f"{k}{sign}2"))} for k in range(2, 8)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"data.train": f"{folder / 'adds.jsonl'},{folder / 'muls.jsonl'}", "data.num_train": 0} | CHANGES


REWARD = """
def near(completions, answer, scale, **kw):
    return [float(text.strip().endswith(one)) * k for text, one, k in zip(completions, answer, scale)]
"""
READ = {  # by a run: what of it is rewritten, and what is then said to have changed
    "a question": ("train.jsonl", "2+2", "2+1", "the training questions"),
    "a column": ("train.jsonl", '"scale": 1', '"scale": 2', "the training questions"),
    "a held-out answer": ("test.jsonl", '"4"', '"5"', "the held-out questions"),
    "a function": ("mine.py", "strip", "rstrip", "the file of {}/mine.py:near"),
}


@pytest.fixture(scope="module")
def graded_by_a_function(tmp_path_factory):
    """A run of one iteration, the changes that it was made with, and the folder of what it reads."""
    folder = tmp_path_factory.mktemp("read")
    for name in ("train", "test"):
        rows = [{"question": f"{k}+2", "answer": str(k + 2), "scale": 1} for k in range(2, 8)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "mine.py").write_text(REWARD)
    files = {"data.train": str(folder / "train.jsonl"), "data.eval": str(folder / "test.jsonl"), "data.num_train": 0}
    changes = CHANGES | files | {"grader.kind": f"{folder}/mine.py:near", "data.num_eval": 2, "num_responses": 2}
    return tiny_run.run(tmp_path_factory.mktemp("run"), changes, num_iterations=1), changes, folder
