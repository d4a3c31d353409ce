"""The order of questions: each epoch a permutation, mixtures with their shares, and the same after any stop."""

import collections
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap

import entry_points
import pytest
import tiny_run
from pod import Pod

from cgrpo_jax import train
from cgrpo_jax.datasets import mixture as mixture_lib
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Problem
from cgrpo_jax.training.checkpoint import Checkpoints, read_extra

MIXTURE = {"small": 0.3, "large": 0.7}
PROBLEMS = [Problem(i, f"s{i}", "", source="small") for i in range(5)]
PROBLEMS += [Problem(i, f"l{i}", "", source="large") for i in range(70)]


def drawn(steps, *, batch_size=8, mixture=MIXTURE, seed=3, problems=PROBLEMS):
    return [
        problem
        for step in steps
        for problem in mixture_lib.draw(problems, mixture, seed=seed, step=step, batch_size=batch_size)
    ]


def test_each_epoch_is_another_permutation_and_batches_span_epochs():
    stream = [
        i for step in range(5) for i in mixture_lib.batch_indices(seed=3, step=step, batch_size=8, num_problems=20)
    ]
    assert sorted(stream[:20]) == sorted(stream[20:]) == list(range(20))
    assert stream[:20] != stream[20:] and stream[:20] != list(range(20))
    whole = mixture_lib.batch_indices(seed=3, step=0, batch_size=40, num_problems=20)  # a batch of two epochs
    assert whole == stream
    assert mixture_lib.batch_indices(seed=4, step=0, batch_size=40, num_problems=20) != stream


def test_batch_indices_refuses_a_negative_step():
    with pytest.raises(ValueError, match="step -1"):
        mixture_lib.batch_indices(seed=0, step=-1, batch_size=1, num_problems=1)


# --- mixtures -----------------------------------------------------------------------------------------------------


def test_shares_are_exact_in_a_block_and_even_within_it():
    sources = [problem.source for problem in drawn(range(250))]
    for block in (sources[:1000], sources[1000:]):
        assert collections.Counter(block) == {"small": 300, "large": 700}
    for start in range(0, 2000, 10):
        assert 2 <= sources[start : start + 10].count("small") <= 4


def test_each_set_has_its_own_epochs():
    questions = collections.defaultdict(list)
    for problem in drawn(range(250)):
        questions[problem.source].append(problem.question)
    for source, size in (("small", 5), ("large", 70)):
        stream = questions[source]
        epochs = [tuple(stream[at : at + size]) for at in range(0, len(stream) - size + 1, size)]
        assert len(epochs) > 10 and all(len(set(epoch)) == size for epoch in epochs)
        assert len(set(epochs)) > len(epochs) / 2


def test_a_step_depends_on_nothing_but_seed_and_step():
    whole = drawn(range(40))
    assert drawn(reversed(range(40))) == [p for step in reversed(range(40)) for p in whole[step * 8 : step * 8 + 8]]
    assert drawn(range(1), batch_size=320) == whole  # also over two epochs, or many, of a set
    assert drawn(range(40), seed=4) != whole
    assert drawn(range(40), mixture={"small": 3, "large": 7}) == whole  # shares of their sum
    assert drawn(range(10), mixture={}) != whole[:80]


def test_shares_of_three_are_rounded_to_a_thousandth():
    picked = mixture_lib.mixture_indices(seed=0, step=0, batch_size=1000, sizes=[3, 3, 3], weights=[1, 1, 1])
    assert sorted(collections.Counter(which for which, _ in picked).values()) == [333, 333, 334]


@pytest.mark.parametrize(
    "text, message",
    [
        ("gsm8k", "'gsm8k' is not NAME:WEIGHT, such as gsm8k:0.3, with a positive weight"),
        ("gsm8k:x", "'gsm8k:x' is not NAME:WEIGHT"),
        ("gsm8k:0", "'gsm8k:0' is not NAME:WEIGHT"),
        ("gsm8k:nan", "'gsm8k:nan' is not NAME:WEIGHT"),
        (":1", "':1' is not NAME:WEIGHT"),
        ("a:1,a:2", "names 'a' twice"),
        ("a:1,b:10000", "gives 'a' less than a thousandth"),
    ],
)
def test_bad_mixtures(text, message):
    with pytest.raises(UserError, match=message):
        mixture_lib.parse_mixture(text)


def test_mixture_of_versions_and_of_other_sources():
    assert mixture_lib.parse_mixture("my_set:1.0.0:2, b:1") == {"my_set:1.0.0": 2.0, "b": 1.0}
    mixture_lib.check_mixture({}, ["a"])
    with pytest.raises(UserError, match="data.mixture names a, c, the training questions are of a, b"):
        mixture_lib.check_mixture({"a": 1, "c": 1}, ["b", "a", "a"])


# --- resume -------------------------------------------------------------------------------------------------------

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
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "XLA_FLAGS": ""}
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


@pytest.mark.parametrize("mixture", ["", "a:0.5,b:0.5"])
@pytest.mark.parametrize("stop", [6, random.Random(0).randrange(1, 14)], ids=["at an epoch's end", "at a random step"])
def test_the_order_after_a_kill_on_one_and_two_processes(tmp_path, mixture, stop):
    """24 questions, 4 a step: after step 6 all have been read, and half of the mixture's positions are one set's."""
    for processes in (1, 2):
        steps(tmp_path, f"stopped{processes}", 0, stop, mixture, processes=processes)
        steps(tmp_path, f"stopped{processes}", stop, 14, mixture, processes=processes)
    steps(tmp_path, "whole", 0, 14, mixture, processes=1)
    whole = (tmp_path / "whole.0").read_text()
    assert len(whole.splitlines()) == 14
    for name in ("stopped1.0", "stopped2.0", "stopped2.1"):
        assert (tmp_path / name).read_text() == whole


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


@pytest.mark.parametrize("stop", [2, 3], ids=["within an epoch", "at an epoch's end"])
@pytest.mark.parametrize("mixture", ["", "adds:1,muls:1"])
def test_a_run_goes_on_with_the_questions_that_it_has_not_read(tmp_path, question_files, stop, mixture, monkeypatch):
    seen = []
    problems = train.Run.questions
    monkeypatch.setattr(train.Run, "questions", lambda *args: seen.append(problems(*args)) or seen[-1])
    changes = question_files | {"data.mixture": mixture, "num_responses": 2}
    tiny_run.run(tmp_path / "whole", changes, num_iterations=5)
    whole, seen[:] = list(seen), []
    tiny_run.run(tmp_path / "stopped", changes, num_iterations=stop)
    tiny_run.run(tmp_path / "stopped", changes, num_iterations=5)
    assert seen == whole and len(whole) == 5
    first_epoch = [problem.question for batch in whole[:3] for problem in batch]
    assert len(first_epoch) == len(set(first_epoch)) == 12


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


@pytest.mark.parametrize("name", [name for name in READ if name != "a function"])
def test_a_run_does_not_go_on_where_what_it_reads_has_changed(graded_by_a_function, name):
    run, changes, folder = graded_by_a_function
    file, old, new, said = READ[name]
    before, text = (run / "metrics.jsonl").read_bytes(), (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1))
    try:
        with pytest.raises(UserError) as caught:
            tiny_run.run(run, changes, num_iterations=2)
    finally:
        (folder / file).write_text(text)
    assert str(caught.value).startswith(f"changed since {run} began: {said.format(folder)}; restore the files (")
    assert (run / "metrics.jsonl").read_bytes() == before


def test_a_run_goes_on_where_it_is_what_it_was(graded_by_a_function, tmp_path):
    run, changes, _ = graded_by_a_function
    folder = shutil.copytree(run, tmp_path / "run")
    tiny_run.run(folder, changes, num_iterations=2)
    assert len(tiny_run.metrics(folder)) == 2


def test_a_run_goes_on_with_a_function_that_was_mended_and_says_so(graded_by_a_function, tmp_path, capsys):
    run, changes, folder = graded_by_a_function
    file, old, new, said = READ["a function"]
    text, again = (folder / file).read_text(), shutil.copytree(run, tmp_path / "run")
    (folder / file).write_text(text.replace(old, new, 1))
    try:
        for iterations, times in ((2, 1), (3, 0)):  # said once
            capsys.readouterr()
            tiny_run.run(again, changes, num_iterations=iterations)
            captured = capsys.readouterr()
            text_said = f"changed since {again} began, and used as it is now: {said.format(folder)}"
            assert (captured.out + captured.err).count(text_said) == times
    finally:
        (folder / file).write_text(text)
    assert len(tiny_run.metrics(again)) == 3


def test_an_evaluation_does_not_go_on_where_what_it_reads_has_changed(graded_by_a_function, tmp_path, capsys):
    run, changes, folder = graded_by_a_function
    changes = changes | {"num_iterations": 1, "eval.k": "(1,)"}
    entry_points.run_evaluate(run, changes, f"--out={tmp_path}")
    for name in ("a held-out answer", "a function"):
        file, old, new, said = READ[name]
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(old, new, 1))
        try:
            _, error = entry_points.refused(capsys, entry_points.run_evaluate, run, changes, f"--out={tmp_path}")
        finally:
            (folder / file).write_text(text)
        assert re.search(rf"holds results of something else \({re.escape(said.format(folder))}: \w+ -> \w+\)", error)
    entry_points.run_evaluate(run, changes, f"--out={tmp_path}")


@pytest.mark.parametrize("once", [{}, {"questions": "0123456789abcdef"}], ids=["nothing", "its questions alone"])
def test_a_checkpoint_that_does_not_say_what_its_run_reads(tmp_path, question_files, monkeypatch, once):
    """As they once were, with a hash of the questions that was made in another way: nothing is compared."""
    save = Checkpoints.save

    def as_it_was(self, step, state, extra):
        kept = {key: value for key, value in extra.items() if key != "inputs"}
        save(self, step, state, kept | once)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", as_it_was)
        tiny_run.run(tmp_path, question_files, num_iterations=1)
    tiny_run.run(tmp_path, question_files, num_iterations=2)
    assert len(tiny_run.metrics(tmp_path)) == 2
    assert read_extra(tmp_path / "checkpoints")["inputs"].keys() == {"the training questions"}


def test_a_pod_that_is_killed_goes_on_in_the_order_of_one_process(tmp_path, question_files):
    changes = question_files | {"num_responses": 2, "samples.per_iteration": 4, "data.num_eval": 0, "mesh.tensor": 1}
    with Pod(tmp_path / "pod", 2, 2, changes, num_iterations=100) as pod:
        pod.at_iteration(2)
        os.kill(pod.process(1), signal.SIGKILL)
        assert pod.wait()[0] != 0
    left = len(tiny_run.metrics(tmp_path / "pod"))
    total = left + 2
    with Pod(tmp_path / "pod", 2, 2, changes, num_iterations=total) as pod:
        status, out = pod.wait()
    assert status == 0, out
    expected = []
    lines = [
        json.loads(line)
        for name in question_files["data.train"].split(",")
        for line in pathlib.Path(name).read_text().splitlines()
    ]
    for step in range(total):
        picked = mixture_lib.batch_indices(seed=2, step=step, batch_size=4, num_problems=12)
        expected += [(step, lines[i]["question"]) for i in picked]
    found = [(row["step"], row["question"]) for row in tiny_run.samples(tmp_path / "pod")]
    assert list(dict.fromkeys(found)) == expected
