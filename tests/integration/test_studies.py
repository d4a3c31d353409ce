"""Studies of recipes in miniature, by their one command: the arm's steps, its row of the table, and nothing twice."""

import pathlib

import pytest
import tiny_study
from tiny_study import study_lib

# Of each an arm that has all kinds of its steps.
ARMS = [
    ("critique_finetuning", "one_problem"),
    ("self_training", "critic_3"),
    ("trained_critics", "rco"),
    ("trained_critics", "joint_adapter"),
]
# Keys of numbers that a few texts may not have: shares of wrong responses, of right ones, of questions that are hard.
OF_SOME = {"fix_rate", "break_rate", "false_right", "distinct_answers", "hard share", "unsolved_before_solved_after"}
OF_MANY_SAMPLES = {"pass@8", "pass@64"}  # the miniature has two of a question


@pytest.mark.parametrize("name, arm", ARMS)
def test_one_command_runs_an_arm_and_prints_its_numbers(tmp_path, name, arm, capsys):
    file, runs = tiny_study.write(name, arm, tmp_path), tmp_path / "runs"
    given = {"study": str(file), "workdir": str(runs), "jobs": 1, "only": "", "report": False}
    study_lib.main(**given)
    said = capsys.readouterr().out
    study = study_lib.load(str(file))
    (run,) = study_lib.plan(study, runs)
    numbers = run.summary()
    assert numbers is not None and list(numbers) == [one.step.name for one in run.steps]
    text = (runs / "table.md").read_text()
    heading, _, row = [line for line in text.splitlines() if line.startswith("|")]
    columns = [column for column, *_ in study["columns"]]
    assert heading == f"| arm | critic sees | seeds | {' | '.join(columns)} |"
    label, _, seeds, *cells = row[2:-2].split(" | ")
    assert label == study["arms"][0]["label"] and seeds == "1" and text in said
    for cell, (_, path, unit, digits) in zip(cells, study["columns"], strict=True):
        value = numbers
        for key in path:
            value = (value or {}).get(key)
        assert cell == ("" if value is None else f"{value / unit:.{digits}f}")
        assert path[0] in numbers and (cell or {*OF_SOME, *OF_MANY_SAMPLES} & {*path}), path

    study_lib.main(**given)  # all of it is done
    assert "1 of 1 runs are done" in capsys.readouterr().out
    assert len(pathlib.Path(runs, "processes.jsonl").read_text().splitlines()) == 1
