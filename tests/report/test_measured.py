import json

import numpy as np
import pytest
import report_runs

from cgrpo_jax.evaluation import estimators
from cgrpo_jax.report import measured, run_folder


@pytest.fixture
def folder(tmp_path):
    return report_runs.write(tmp_path / "a", iterations=1, questions=1)


def found(folder):
    faults = []
    return measured.of_run(run_folder.read(folder), faults), faults


def test_without_either_there_is_nothing(folder):
    assert found(folder) == ({"evaluation": None, "diagnosis": None}, [])


def test_pass_at_k_is_the_estimator_over_all_k(folder):
    lines = report_runs.measure(folder, samples=6)
    curve = found(folder)[0]["evaluation"]["curves"]["tables"]
    counts = [int(sum(line["rewards"])) for line in lines]
    assert curve["ks"] == [1, 2, 4, 6]
    assert curve["value"] == pytest.approx([estimators.pass_at_k(counts, 6, k) for k in (1, 2, 4, 6)])
    assert np.all(np.array(curve["low"]) <= curve["value"]) and np.all(np.array(curve["value"]) <= curve["high"])


def test_numbers_are_those_of_the_summaries(folder):
    report_runs.measure(folder)
    shown, faults = found(folder)
    evaluated = json.loads((folder / "evaluation" / "summary.json").read_text())
    diagnosed = json.loads((folder / "diagnosis" / "summary.json").read_text())
    assert faults == [] and shown["evaluation"]["benchmarks"] == evaluated["benchmarks"]
    assert shown["evaluation"]["benchmarks"]["tables"]["fixed"] == 1
    assert shown["diagnosis"]["kinds"] == diagnosed["kinds"] and shown["diagnosis"]["questions"] == 4


def test_cases_say_what_became_of_an_answer(folder):
    report_runs.measure(folder)
    shown, _ = found(folder)
    cases = {case["question"]: case for case in shown["evaluation"]["cases"]}
    assert {q: case["became"] for q, case in cases.items()} == {"1*9": "fixed", "2*9": "broken", "3*9": "still wrong"}
    assert cases["1*9"]["refinement"] == "Answer: 9" and cases["1*9"]["critique"] == "Look again."
    kinds = [(case["kind"], case["question"], case["became"]) for case in shown["diagnosis"]["cases"]]
    assert kinds == [
        ("execution", "0*7", "fixed"), ("execution", "1*7", "fixed"), ("execution", "3*7", "still wrong"),
        ("cot", "0*7", "still wrong"),
    ]  # fmt: skip
    assert shown["diagnosis"]["cases"][0]["response"] == "response 0 of 0"


def test_long_texts_are_cut(folder, monkeypatch):
    monkeypatch.setattr(measured, "_MOST_CHARACTERS", 4)
    report_runs.measure(folder)
    assert found(folder)[0]["evaluation"]["cases"][0]["critique"] == "Look ... [7 characters more]"


@pytest.mark.parametrize("damage", ["{", "[1]", '{"weights": "x"}'])
def test_what_can_not_be_read_is_a_fault_and_the_other_is_shown(folder, damage):
    report_runs.measure(folder)
    (folder / "evaluation" / "summary.json").write_text(damage)
    shown, faults = found(folder)
    assert shown["evaluation"] is None and shown["diagnosis"] is not None
    assert len(faults) == 1 and faults[0].startswith("a: its evaluation can't be read (")


def test_one_that_goes_on_is_said(folder):
    report_runs.measure(folder)
    (folder / "diagnosis" / "summary.json").unlink()
    shown, faults = found(folder)
    assert shown["diagnosis"] is None and faults == ["a: its diagnosis has not ended, and is not shown"]
