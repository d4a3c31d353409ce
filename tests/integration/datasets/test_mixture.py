"""What takes longer than a unit test may, of tests/datasets/test_mixture.py."""

import json
import os
import pathlib
import random
import re
import shutil
import signal

import entry_points
import mixture_cases
import pytest
import tiny_run
from mixture_cases import READ, steps
from pod import Pod

from cgrpo_jax import train
from cgrpo_jax.datasets import mixture as mixture_lib
from cgrpo_jax.errors import UserError
from cgrpo_jax.training.checkpoint import Checkpoints, read_extra

question_files = mixture_cases.question_files  # the fixture
graded_by_a_function = mixture_cases.graded_by_a_function  # the fixture


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


def test_a_pod_that_is_killed_goes_on_in_the_order_of_one_process(tmp_path, question_files):
    changes = question_files | {"num_responses": 2, "data.num_eval": 0, "mesh.tensor": 1}
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


question_files = mixture_cases.question_files  # the fixture


def test_a_run_goes_on_where_it_is_what_it_was(graded_by_a_function, tmp_path):
    run, changes, _ = graded_by_a_function
    folder = shutil.copytree(run, tmp_path / "run")
    tiny_run.run(folder, changes, num_iterations=2)
    assert len(tiny_run.metrics(folder)) == 2


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


graded_by_a_function = mixture_cases.graded_by_a_function  # the fixture


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
