"""The benchmark of the graders: what it makes up, and a whole run of it on small numbers."""

import json
import os
import pathlib
import random
import subprocess
import sys

import grading

BENCHMARK = pathlib.Path(grading.__file__)


def test_responses_are_distinct_and_so_are_the_answers_where_it_is_said():
    rng = random.Random(0)
    golds = grading.gold_answers(50, rng)
    for name, answers, num_right in (("distinct", 8, 4), ("sampled", 4, 5)):
        rows, rights = grading.workload(golds, name, rng)
        assert len(rows) == len(rights) == len({text for text, _ in rows}) == 400
        assert rights == ([True] * num_right + [False] * (8 - num_right)) * 50
        boxes = [text.rpartition("boxed{")[2] for text, _ in rows]
        assert {len(set(boxes[i : i + 8])) for i in range(0, 400, 8)} == {answers}
        assert all(600 < len(text) < 1500 for text, _ in rows)


def test_gold_answers_of_a_file(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"answer": "7"}\n{"answer": "x^2"}\n')
    golds = grading.read_answers(tmp_path / "data.jsonl", 10, random.Random(0))
    assert sorted(gold for gold, _ in golds) == ["7", "x^2"]


def test_changes_are_listed_once_with_their_reason():
    rows = [(r"so \boxed{0.\dot3}", "1/3"), (r"thus \boxed{0.\dot3}", "1/3"), (r"\boxed{7}", "7"), (r"\boxed{7}", "8")]
    found = list(grading.changed(rows, [True] * 3 + [False], [True, True, True, False], [False] * 4))
    assert [(one["gold"], one["answer"], one["right"], one["reason"]) for one in found] == [
        ("1/3", r"0.\dot3", True, "rewritten: repeating decimals"),
        ("7", "7", True, "the gold answer itself"),
    ]


def test_a_whole_run_has_math_verifys_verdicts(tmp_path):
    command = [sys.executable, str(BENCHMARK), "--pairs=1", "--answers=6", f"--json={tmp_path}/out.json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode in (0, 1), done.stderr[-3000:]  # so few rows say nothing of the speed
    rows = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())}
    for name in ("distinct", "sampled"):
        assert rows[f"{name}/differing"]["value"] == rows[f"{name}/wrong"]["value"] == 0
        assert rows[f"{name}/differing"]["target"] == rows[f"{name}/wrong"]["target"] == 0
        assert 0.4 < rows[f"{name}/right"]["value"] < 0.8
        assert rows[f"{name}/ratio"]["value"] > 0 and rows[f"{name}/ratio"]["target"] == 1.7
