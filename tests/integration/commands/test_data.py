"""What takes longer than a unit test may, of tests/commands/test_data.py."""

import json

import tiny_run
from data_cases import MINE, run, write


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
