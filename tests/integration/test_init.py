"""`cgrpo init`, and the run of what it has written."""

import json

import converted
import hf_folders
import pytest
import tiny_run
from bucket_fixtures import bucket  # noqa: F401 - a fixture

from cgrpo_jax import init, train
from cgrpo_jax.runs import cli, first_config


def run_init(*flags):
    cli.run(init.main, require=("data", "model", "out"), flags=init.FLAGS, argv=list(flags))


def test_what_it_writes_trains(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"max_position_embeddings": 160, "num_hidden_layers": 1}
    converted.make_folder(tmp_path / "model", hf_folders.LLAMA | small)
    rows = [{"question": f"{n}+{n}", "answer": f"{n}+{n}={2 * n}\n#### {2 * n}"} for n in range(4)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--data=train.jsonl", "--model=model", "--out=mine.py"]
    run_init(*flags)
    out = capsys.readouterr().out
    assert "columns: question 'question', answer 'answer', the answer by '####\\\\s*(.+)'\n" in out
    assert "\nwrote mine.py; next: cgrpo train --config=mine.py --workdir=runs/mine\n" in out
    assert out.endswith("\nthen: cgrpo evaluate --workdir=runs/mine --config.data.eval=FILE\n")
    with pytest.raises(SystemExit) as caught:
        run_init(*flags)
    assert caught.value.code == 2 and "--out mine.py is there already" in capsys.readouterr().err
    few = ["num_iterations=1", "num_responses=2", "engine.num_slots=8", "max_response_length=16", "packing.rows=1"]
    argv = ["--config=mine.py", "--workdir=run", *(f"--config.{one}" for one in few)]
    cli.run(train.main, require=("config", "workdir"), argv=argv)
    (row,) = tiny_run.metrics(tmp_path / "run")
    assert row["refine/attempted"] and "reward" in row


def test_mathematics_and_boxes(tmp_path):
    model = converted.make_folder(tmp_path / "model", hf_folders.LLAMA | {"max_position_embeddings": 2048})
    answers = [r"\frac{1}{2}", "x^2+1"]
    boxed = [f"so $\\boxed{{{answer}}}$." for answer in answers]
    for name, golds, pattern in (("answer", answers, ""), ("solution", boxed, first_config.PATTERNS[1])):
        rows = [{"problem": "x?", name: gold} for gold in golds]
        (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = first_config.look_at(data=str(tmp_path / "train.jsonl"), model=str(model))
        assert (found.grader, found.critique, found.columns.pattern) == ("math", "cot", pattern)
    model = converted.make_folder(tmp_path / "small", hf_folders.LLAMA | {"max_position_embeddings": 256})
    found = first_config.look_at(data=str(tmp_path / "train.jsonl"), model=str(model))
    assert (found.grader, found.critique) == ("math", "execution") and found.written_critique > 256


def test_data_and_model_in_a_bucket(bucket, tmp_path, monkeypatch, capsys):  # noqa: F811
    """They are looked at in their copies, and the file names the bucket, as the run on another machine needs it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    small = {"max_position_embeddings": 160, "num_hidden_layers": 1}
    bucket.load("mine", "model", converted.make_folder(tmp_path / "model", hf_folders.LLAMA | small))
    rows = "".join(json.dumps({"question": f"{n}+{n}", "answer": str(2 * n)}) + "\n" for n in range(4))
    bucket.write("mine", "train.jsonl", rows.encode())
    run_init("--data=gs://mine/train.jsonl", "--eval=gs://mine/train.jsonl", "--model=gs://mine/model", "--out=mine.py")
    written = (tmp_path / "mine.py").read_text()
    assert "c.model.folder = 'gs://mine/model'" in written and "c.data.train = 'gs://mine/train.jsonl'" in written
    assert "questions: 4, of up to" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        run_init("--data=gs://mine/none.jsonl", "--model=gs://mine/model", "--out=other.py")
    assert "gs://mine/none.jsonl" in capsys.readouterr().err and not (tmp_path / "other.py").exists()
