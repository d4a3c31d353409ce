"""What takes longer than a unit test may, of tests/commands/test_data.py."""

import json

import pytest
import tiny_run
from bucket_fixtures import bucket  # noqa: F401 - a fixture
from data_cases import MINE, run, write

from cgrpo_jax.datasets import problems


def test_trains_on_prepared_sets_mixed(tmp_path):
    """Two sets, one of them without a grader of its own; held-out questions of both."""
    for name, rows in (("adds", ["1+2", "2+3", "3+4"]), ("muls", ["2*3", "3*4"])):
        path = write(tmp_path / f"{name}.jsonl", *[{"q": row, "a": str(eval(row))} for row in rows])
        grader = ("--grader=numeric",) if name == "adds" else ()
        run(tmp_path, name, f"--source=train={path},test={path}", *MINE, *grader)
    changes = {
        "data.kind": "tfds", "data.tfds_dir": str(tmp_path), "data.train": "adds,muls", "data.eval": "muls,adds",
        "data.mixture": "adds:0.5,muls:0.5", "data.num_train": 0, "data.num_eval": 0, "grader.kind": "numeric",
        "critique.step_checker": "equations", "refine.kind": "none", "eval.num_samples": 1, "eval.k": (1,),
        "num_iterations": 3,
    }  # fmt: skip
    folder = tiny_run.run(tmp_path / "run", changes)
    seen = [row["question"] for row in tiny_run.samples(folder)]
    assert len(seen) == len(set(enumerate(seen))) and {q for q in seen if "*" in q} == {"2*3", "3*4"}
    assert "eval_after" in json.loads((folder / "summary.json").read_text())


def test_a_set_that_is_prepared_in_a_bucket_is_what_is_read_there(bucket, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write(tmp_path / "adds.jsonl", *[{"q": row, "a": str(eval(row))} for row in ("1+2", "2+3")])
    run("gs://mine/sets", "adds", f"--source={path}", *MINE)
    assert "wrote gs://mine/sets/adds; it is used with\n" in capsys.readouterr().out
    names = bucket.names("mine")
    assert "sets/adds/1.0.0/digests.json" in names and not any("partial" in name or "work" in name for name in names)
    keys = {"question_key": "question", "answer_key": "answer", "solution_key": None, "answer_pattern": None}
    splits = {"train": None, "eval": "", "train_split": "train", "eval_split": "test", "num_train": 0, "num_eval": 0}
    source = problems.Stored(kind="tfds", tfds_dir="gs://mine/sets", **keys, **splits)
    read = problems._read_all(source, "adds", "train", limit=0)
    assert [(one.question, one.answer) for one in read] == [("1+2", "3"), ("2+3", "5")]
    with pytest.raises(SystemExit):
        run("gs://mine/sets", "adds", f"--source={path}", *MINE)
    assert "gs://mine/sets/adds exists already" in capsys.readouterr().err and bucket.names("mine") == names
