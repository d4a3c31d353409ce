"""What takes longer than a unit test may, of tests/datasets/test_filters.py."""

import tiny_run
from filters_cases import run_files


def test_a_run_says_what_is_left_out_and_trains_on_the_rest(tmp_path, capsys):
    changes = run_files(tmp_path, [0, 0.5, 1, 0.5, 0.5]) | {"refine.kind": "none", "data.num_train": 0, "data.eval": ""}
    folder = tiny_run.run(tmp_path / "run", changes, num_iterations=2)
    said = (
        "4 of 6 training questions are left by data.pass_rates: 1 have a rate of at most 0, 1 of at least 1; 1 without"
    )
    assert said in capsys.readouterr().err
    assert {row["question"] for row in tiny_run.samples(folder)} == {"3+2", "5+2", "6+2", "7+2"}
