import dataclasses
import json

import pytest
import report_runs

from cgrpo_jax.errors import UserError
from cgrpo_jax.report import run_folder


def test_a_folder_is_read_as_it_is(tmp_path):
    run = run_folder.read(report_runs.write(tmp_path / "a", iterations=2, questions=2))
    assert (run.name, len(run.metrics), len(run.files), run.faults) == ("a", 2, 2, [])
    assert run.facts.gamma == 0.001 and run.facts.trainer_logp and run.summary["iterations"] == 2
    assert run.facts.changed["objective.gamma"] == 0.001 and "objective.clip_low" not in run.facts.changed


def test_a_run_that_goes_on_is_read_up_to_its_last_whole_line(tmp_path):
    folder = report_runs.write(tmp_path / "a", iterations=3, questions=2, ended=False)
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text("not JSON\n" + whole[:-9])
    run = run_folder.read(folder)
    assert [row["step"] for row in run.metrics] == [0, 1] and run.summary is None
    assert run.faults == [
        "1 lines of metrics.jsonl can't be read",
        "the last line of metrics.jsonl is being written, or was cut short",
    ]


def test_a_run_that_was_extended_has_not_ended(tmp_path):
    run = run_folder.read(report_runs.write(tmp_path / "a", iterations=2, questions=1))
    assert run.ended
    longer = dataclasses.replace(run, facts=dataclasses.replace(run.facts, num_iterations=3))
    assert not longer.ended and not dataclasses.replace(run, summary=None).ended


def finetuned(path, *, ended=True, **changes):
    """Returns the folder of a run that has learnt 10 rows in five updates of 4: two epochs."""
    changes = {"finetune.epochs": 2, "finetune.rows_per_update": 4} | changes
    folder = report_runs.write(path, iterations=5, questions=1, ended=ended, changes={"num_iterations": 100} | changes)
    rows = [json.dumps({"step": n, "loss": 1.0, "epoch": (n + 1) * 4 / 10}) + "\n" for n in range(5)]
    (folder / "metrics.jsonl").write_text("".join(rows))
    return folder


def test_a_run_that_learns_rows_has_as_many_updates_as_its_epochs(tmp_path):
    run = run_folder.read(finetuned(tmp_path / "a"))
    assert (run.learns_rows, run.planned, run.ended) == (True, 5, True)
    for number in range(1, 5):
        assert dataclasses.replace(run, metrics=run.metrics[:number]).planned == 5
    more = run_folder.read(finetuned(tmp_path / "b", **{"finetune.epochs": 3}))
    assert (more.planned, more.ended) == (8, False)
    assert run_folder.read(finetuned(tmp_path / "c", **{"finetune.epochs": 0})).planned == 100
    assert not run_folder.read(report_runs.write(tmp_path / "d", iterations=1, questions=1)).learns_rows


def test_of_rows_with_one_step_the_last_counts(tmp_path):
    folder = report_runs.write(tmp_path / "a", iterations=2, questions=2)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 0, "reward": 9.0}) + "\n")
    assert [(row["step"], row["reward"] == 9.0) for row in run_folder.read(folder).metrics] == [(0, True), (1, False)]


def test_a_folder_without_a_run_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"there is no run in .* \(no config.json\); give the folder of a run"):
        run_folder.read(tmp_path)


def test_runs_of_one_name_are_told_apart(tmp_path):
    for arm in ("grpo", "critique"):
        report_runs.write(tmp_path / arm / "seed0", iterations=1, questions=1)
    names = [run.name for run in run_folder.read_all([tmp_path / "grpo/seed0", tmp_path / "critique/seed0"])]
    assert names == ["grpo/seed0", "critique/seed0"]
