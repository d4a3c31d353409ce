"""The study that chooses the private library's learning rate: what its runs are, and what they never see."""

import sys

import paths

sys.path.insert(0, str(paths.ROOT / "launch"))  # as `python launch/study.py` has it
import study as study_lib  # noqa: E402

STUDIES = paths.CONFIGS / "studies"


def test_rates_are_tried_on_libraries_of_which_no_result_is_reported(tmp_path):
    runs = study_lib.plan(study_lib.load(str(STUDIES / "private_tuning.py")), tmp_path)
    assert len(runs) == 6 and len({run.name for run in runs}) == 6
    assert {run.seed for run in runs} == {100}
    reported = ("train.jsonl", "test.jsonl", "control.jsonl")
    for run in runs:
        data, modules = run.config["data"], run.config["code"]["modules"]
        assert data["train"].endswith("tune_train.jsonl") and data["eval"].endswith("tune_test.jsonl")
        assert not {data["train"].rpartition("/")[2], data["eval"].rpartition("/")[2]} & set(reported)
        assert [name.rpartition("/")[2] for name in modules] == ["belltower.py", "kilnbook.py"]


def test_runs_differ_in_arm_and_rate_alone(tmp_path):
    runs = study_lib.plan(study_lib.load(str(STUDIES / "private_tuning.py")), tmp_path)
    execution = [run for run in runs if run.arm.startswith("execution")]
    configs = [{**run.config, "optimizer": {**run.config["optimizer"], "learning_rate": None}} for run in execution]
    assert len(execution) == 3 and configs[0] == configs[1] == configs[2]
    assert sorted(run.config["optimizer"]["learning_rate"] for run in execution) == [3e-4, 1e-3, 3e-3]
