"""The launcher of studies, with a stand-in for training that writes a run's files at once."""

import importlib.util
import json
import pathlib
import re
import sys

import paths
import pytest
from bucket_fixtures import bucket  # noqa: F401 - a fixture
from stand_in_study import CONFIG, STAND_IN, files_of, summary

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import validate
from cgrpo_jax.runtime import places

ROOT = paths.ROOT
ARITHMETIC = ROOT / "configs" / "studies" / "arithmetic.py"

sys.path.insert(0, str(ROOT / "launch"))  # as `python launch/study.py` has it
import runner  # noqa: E402
import study as study_lib  # noqa: E402
import study_report  # noqa: E402


@pytest.fixture
def study(tmp_path):
    """Two settings, one headline arm of two seeds and another arm of one."""
    arms = [
        {"name": "plain", "label": "Plain", "sees": "nothing", "overrides": {"refine.kind": "none"}, "headline": False},
        {"name": "top", "label": "Top", "sees": "all", "overrides": {"objective.gamma": 0.2}, "headline": True},
    ]
    seeds = {"plain": range(1), "top": range(2)}
    (tmp_path / "config.py").write_text(CONFIG)
    return {
        "config": str(tmp_path / "config.py"),
        "settings": [
            {"name": "hard", "label": "Hard ones", "overrides": {}, "headline_only": False},
            {"name": "easy", "label": "Easy ones", "overrides": {"data.num_held_out": 0}, "headline_only": True},
        ],
        "arms": [arm | {"seeds": seeds[arm["name"]]} for arm in arms],
        "entropy": [],
    }


def finish(run, result):
    run.folder.mkdir(parents=True)
    for name, content in files_of(run, result).items():
        (run.folder / name).write_text(content)


@pytest.fixture
def start(tmp_path, study):
    """Returns a function that runs the study with the stand-in and returns the folders it started."""
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "stand_in.py").write_text(STAND_IN)

    def start(bad=None, entropy=(), result=summary, **flags):
        (bench / "study.py").write_text(f"def get_study():\n    return {study | {'entropy': entropy}!r}\n")
        if bad:
            (bench / "bad").write_text(bad)
        else:
            (bench / "bad").unlink(missing_ok=True)
        (bench / "started").write_text("")
        flags = {"jobs": 2, "only": "", "report": False, "workdir": str(tmp_path / "runs")} | flags
        runs = study_lib.plan(study, places.place(flags["workdir"]))
        results = {run: result() if run.needs else summary(None, None, None, 0) for run in runs}
        (bench / "expected.json").write_text(json.dumps({str(r.folder): files_of(r, results[r]) for r in runs}))
        command = (sys.executable, "-S", str(bench / "stand_in.py"))
        try:
            study_lib.main(study=str(bench / "study.py"), command=command, **flags)
        except SystemExit as stop:
            assert stop.code == 1
            failed = True
        else:
            failed = False
        folders = (bench / "started").read_text().split()
        return [str(pathlib.Path(f).relative_to(pathlib.Path(flags["workdir"]))) for f in folders], failed

    return start


# --- the plan -----------------------------------------------------------------------------------------------------


def test_the_committed_study_has_the_arms_and_seeds_that_the_comparison_needs(tmp_path):
    study = study_lib.load(str(ARITHMETIC))
    runs = study_lib.plan(study, tmp_path)
    trained = [run for run in runs if run.needs]
    seeds = {}
    for run in trained:
        seeds.setdefault((run.setting, run.arm), []).append(run.seed)
    headline = {"r1_grpo", "r1_dr_grpo", "execution", "execution_paper"}
    assert {arm for (setting, arm) in seeds if setting == "rare_facts"} == headline
    assert all(found == list(range(5 if arm in headline else 3)) for (_, arm), found in seeds.items())
    assert len(trained) == 2 * 4 * 5 + 7 * 3 and len(runs) == len(trained) + 2 * 5
    assert set(study["entropy"]) <= {arm["name"] for arm in study["arms"]}


def test_the_committed_study_sets_existing_keys_only_and_no_hyperparameter_of_one_arm(tmp_path):
    study = study_lib.load(str(ARITHMETIC))
    base = config_lib.flatten(config_lib.load(ROOT / "configs" / "base.py").to_dict())
    for item in study["settings"] + study["arms"]:
        assert item["overrides"].keys() <= base.keys()
    method = {
        "refine.kind", "num_responses", "refine.num_kept", "objective.scale_by_std", "objective.aggregate",
        "objective.kl_coef", "critique.kind", "critique.reveals_value",
    }  # fmt: skip
    assert {key for arm in study["arms"] for key in arm["overrides"]} == method
    # Neither do the arms differ in what they don't set: task, evaluation, learning rate.
    runs = [run for run in study_lib.plan(study, tmp_path) if run.needs and run.setting == "held_out_facts"]
    free = [*method, "seed", "model.init"]
    assert all(config_lib.differences(runs[0].config, run.config, free) == [] for run in runs)


def test_the_committed_study_of_code_changes_what_its_arms_are_named_after(tmp_path):
    runs = study_lib.plan(study_lib.load(str(ARITHMETIC.with_name("code.py"))), tmp_path)
    trained = [run for run in runs if run.needs]
    assert len(trained) == 4 * 3 and len(runs) == len(trained) + 3
    assert {(run.config["data"]["kind"], run.config["grader"]["kind"]) for run in runs} == {("snippets", "code")}
    free = ["refine.kind", "num_responses", "critique.kind", "critique.reveals_value", "seed", "model.init"]
    assert all(config_lib.differences(trained[0].config, run.config, free) == [] for run in trained)
    differ = {(run.arm, run.config["critique"]["kind"], run.config["critique"]["reveals_value"]) for run in trained[:2]}
    assert differ == {("execution", "execution", True), ("indicative", "indicative", True)}


def test_the_committed_settings_leave_room_for_a_solution(tmp_path):
    from cgrpo_jax.datasets.tasks import arithmetic
    from cgrpo_jax.models.hf.tokenizer import load_tokenizer
    from cgrpo_jax.runs import model_source

    encode = load_tokenizer(model_source.tokenizer_folder("arithmetic")).encode
    for run in study_lib.plan(study_lib.load(str(ARITHMETIC)), tmp_path):
        if run.seed:
            continue
        config = config_lib.load(ROOT / "configs" / "quickstart.py")
        config_lib.override(config, [argument for argument in run.arguments if argument.startswith("--config.")])
        validate.check(config_lib.freeze(config))
        question = "7" + "+8" * config.data.chain_length
        assert len(encode(arithmetic.solution(question))) < config.max_response_length


def test_the_committed_study_of_a_private_library(tmp_path):
    runs = study_lib.plan(study_lib.load(str(ARITHMETIC.with_name("private_api.py"))), tmp_path)
    assert all(run.is_arm and run.needs is None and not run.config["model"]["init"] for run in runs)
    first = {run.arm for run in runs[:3]}
    assert first == {"grpo", "execution", "shuffled"} and len(runs) == 3 * 3 + 4
    free = ["refine.kind", "num_responses", "objective.scale_by_std", "critique.kind", "critique.corruption"]
    free += ["critique.others", "seed"]
    assert all(config_lib.differences(runs[0].config, run.config, free) == [] for run in runs)
    for run in runs:
        config = config_lib.load(ROOT / "configs" / "private_api.py")
        config_lib.override(config, [argument for argument in run.arguments if argument.startswith("--config.")])
        validate.check(config_lib.freeze(config))
    prompts = runs[0].config["prompts"]
    said = "{critique}\n\nTake what fits from this message, and write the"
    frame = prompts["refine"].replace(said, "{response}\n\nWrite the")
    assert said in prompts["refine"] and prompts["refine_without_critique"] == frame
    assert [run.name for run in study_lib.select(runs, "execution/seed1")] == ["private/execution/seed1"]
    with pytest.raises(UserError, match="matches no run; the first is private/grpo/seed0"):
        study_lib.select(runs, "nothing")


def test_order_is_seed_by_seed_with_headline_arms_first_and_a_warm_start_before_its_arms(study, tmp_path):
    assert [run.name for run in study_lib.plan(study, tmp_path)] == [
        "hard/warm_start/seed0",
        "hard/top/seed0",
        "easy/warm_start/seed0",
        "easy/top/seed0",
        "hard/plain/seed0",
        "hard/warm_start/seed1",
        "hard/top/seed1",
        "easy/warm_start/seed1",
        "easy/top/seed1",
    ]


def test_arms_of_a_seed_start_from_one_warm_start(study, tmp_path):
    runs = {run.name: run for run in study_lib.plan(study, tmp_path)}
    warm, top, plain = (runs[f"hard/{arm}/seed0"] for arm in ("warm_start", "top", "plain"))
    assert top.needs is warm and plain.needs is warm and warm.needs is None
    assert warm.config["num_iterations"] == 0 and warm.config["warm_start"]["num_updates"] == 5
    for run in (top, plain):
        assert run.config["model"]["init"] == str(tmp_path / "hard" / "warm_start" / "seed0" / "checkpoints")
        assert run.config["warm_start"]["num_updates"] == 0
    assert runs["easy/top/seed1"].config["data"]["num_held_out"] == 0
    assert runs["easy/top/seed1"].arguments[0] == "train"
    assert runs["easy/top/seed1"].arguments[3:] == [
        "--config.data.num_held_out=0",
        "--config.objective.gamma=0.2",
        f"--config.model.init={tmp_path / 'easy' / 'warm_start' / 'seed1' / 'checkpoints'}",
        "--config.warm_start.num_updates=0",
        "--config.seed=1",
    ]


# --- running ------------------------------------------------------------------------------------------------------


def test_a_second_call_runs_nothing_and_a_first_one_everything_after_what_it_needs(start, capsys):
    started, failed = start()
    assert not failed and len(started) == len(set(started)) == 9
    assert all(started.index(re.sub("top|plain", "warm_start", name)) <= started.index(name) for name in started)
    out = capsys.readouterr().out
    assert re.search(r"^hard/top/seed1: pass@1 0.250 -> 0.500, \d+ s$", out, re.M)
    assert re.search(r"^hard/warm_start/seed0: \d+ s$", out, re.M)
    assert start() == ([], False)
    assert "9 of 9 runs are done" in capsys.readouterr().out


def test_an_unfinished_run_and_one_of_another_configuration_run_again(start, study, tmp_path):
    start()
    (tmp_path / "runs/hard/top/seed0/summary.json").unlink()
    config = tmp_path / "runs/easy/top/seed1/config.json"
    config.write_text(config.read_text().replace('"gamma": 0.2', '"gamma": 0.3'))
    assert sorted(start()[0]) == ["easy/top/seed1", "hard/top/seed0"]
    # A key that did not exist when a run was made does not outdate it, unless the study sets it.
    for key, again in (("entropy_coef", []), ("gamma", ["easy/top/seed1"])):
        values = json.loads(config.read_text())
        del values["objective"][key]
        config.write_text(json.dumps(values))
        assert start()[0] == again


def test_what_a_run_has_not_measured_is_no_mistake(start, tmp_path, capsys):
    """Of a summary any part may be missing or null, but for what says that it is of this study."""
    for missing, shown in (("eval_before", "? -> 0.500"), ("eval_after", "0.250 -> ?"), ("num_tokens", "0.250 -> 0.5")):
        for lacks in (dict.pop, lambda values, key: values.update({key: None})):
            workdir = str(tmp_path / f"runs{len(list(tmp_path.glob('runs*')))}")
            result = summary()
            lacks(result, missing)
            assert start(only="hard/top/seed0", workdir=workdir, result=lambda values=result: values)[1] is False
            assert f"hard/top/seed0: pass@1 {shown}" in capsys.readouterr().out
            assert "| Top | all | 1 of 2 |" in pathlib.Path(workdir, "table.md").read_text()


@pytest.mark.parametrize("name", ["config.json", "summary.json", "metrics.jsonl"])
@pytest.mark.parametrize("content", ["", "{", "[]", '{"iterations": {}}', "\0" * 9])
def test_a_damaged_run_is_one_that_is_not_done(start, tmp_path, name, content):
    start(only="hard/top/seed0", entropy=["top"])
    (tmp_path / "runs/hard/top/seed0" / name).write_text(content)
    (tmp_path / "runs/processes.jsonl").write_text(content)
    again = [] if name == "metrics.jsonl" else ["hard/top/seed0"]
    assert start(only="hard/top/seed0", entropy=["top"]) == (again, False)


def test_arms_of_an_outdated_warm_start_are_outdated(study, tmp_path):
    runs = study_lib.plan(study, tmp_path)
    for run in runs:
        finish(run, summary() if run.needs else summary(None, None, None, 0))
    config = runs[0].folder / "config.json"
    config.write_text(config.read_text().replace('"rows_per_update": 64', '"rows_per_update": 32'))
    outdated = [run.name for run in runs if run.summary() is None]
    assert outdated == ["hard/warm_start/seed0", "hard/top/seed0", "hard/plain/seed0"]
    assert "Left out: 3 runs" in study_report.write(study, runs, tmp_path)


def test_runs_of_another_version_of_the_task_are_outdated(study, tmp_path):
    warm, top, *_ = study_lib.plan(study, tmp_path)
    finish(warm, summary(None, None, None, 0) | {"task": "chains 0"})
    finish(top, summary())
    assert warm.summary() is None and top.summary() is None
    assert "Left out: 2 runs of another configuration or version of the task" in study_report.write(
        study, [warm, top], tmp_path
    )


def test_a_run_that_was_made_longer_is_not_done_until_its_summary_says_so(study, tmp_path):
    warm, top, *_ = study_lib.plan(study, tmp_path)
    finish(warm, summary(None, None, None, 0))
    finish(top, summary() | {"iterations": 59})
    assert warm.summary() is not None and top.summary() is None


def test_lengths_that_the_run_has_chosen_do_not_outdate_it(study, tmp_path):
    warm = study_lib.plan(study, tmp_path)[0]
    finish(warm, summary(None, None, None, 0))
    asked = warm.config | {"max_response_length": 0}
    assert runner.summary(warm.folder, asked, []) is not None
    assert runner.summary(warm.folder, asked | {"max_prompt_length": 1}, []) is None


def test_a_failed_run_is_named_with_its_log_and_the_others_go_on(start, tmp_path, capsys):
    started, failed = start(bad="hard/top/seed0")
    assert failed and len(started) == 9
    out = capsys.readouterr().out
    log = tmp_path / "runs/hard/top/seed0.log"
    assert f"hard/top/seed0: failed with exit code 1: error: no luck (see {log})" in out
    assert "8 of 9 runs done" in out and out.endswith("1 runs failed: hard/top/seed0\n")
    assert start() == (["hard/top/seed0"], False)


def test_arms_whose_warm_start_failed_do_not_start(start, capsys):
    started, failed = start(bad="hard/warm_start/seed0")
    assert failed and len(started) == 7 and not {"hard/top/seed0", "hard/plain/seed0"} & set(started)
    assert "hard/plain/seed0: not started, it needs hard/warm_start/seed0" in capsys.readouterr().out


def report_of(out):
    """Returns what is printed after the lines of runs, without what a clock and compression decide."""
    return re.sub("[0-9.]+ (hours|MB)", "", out.partition("\n\n")[2])


def test_a_study_in_a_bucket_is_one_on_a_disk(start, bucket, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    start(entropy=["top"])
    here = report_of(capsys.readouterr().out)
    assert "9 of 9 runs done" in here and "report.html" in here
    where = {"workdir": "gs://mine/runs"}
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path)
        assert start(entropy=["top"], **where)[1] is False
    assert report_of(capsys.readouterr().out.replace("gs://mine", str(tmp_path))) == here
    assert start(**where) == ([], False) and start(report=True, **where) == ([], False)
    written = {name.removeprefix("runs/") for name in bucket.names("mine", "runs/") if name.count("/") == 1}
    assert written >= {path.name for path in (tmp_path / "runs").iterdir() if path.is_file()} - {".lock"}
    assert bucket.read("mine", "runs/hard/top/seed0.log") == b"log of gs://mine/runs/hard/top/seed0\n"
    assert not (tmp_path / "gs:").exists()


def test_only_takes_the_warm_starts_along(start):
    assert start(only="hard/top/seed1")[0] == ["hard/warm_start/seed1", "hard/top/seed1"]


def test_every_process_gets_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(runner.os, "sched_getaffinity", lambda _: {4, 5, 6}, raising=False)
    monkeypatch.setattr(runner.os, "sched_setaffinity", lambda *_: None, raising=False)
    shares = {jobs: [slot.cores for slot in runner.local_slots(jobs)] for jobs in (1, 2, 4)}
    assert shares == {1: [(4, 5, 6)], 2: [(4,), (5, 6)], 4: [(4,), (4,), (5,), (6,)]}
    monkeypatch.delattr(runner.os, "sched_setaffinity")
    assert runner.local_slots(1)[0].cores == ()


# --- the report ---------------------------------------------------------------------------------------------------


def test_the_table_has_mean_and_spread_and_tells_how_many_seeds(study, tmp_path):
    runs = {run.name: run for run in study_lib.plan(study, tmp_path)}
    for seed in (0, 1):
        finish(runs[f"hard/warm_start/seed{seed}"], summary(None, None, None, 0))
    finish(runs["hard/top/seed0"], summary(0.25, 0.5, 0.5, 1000))
    finish(runs["hard/top/seed1"], summary(0.5, 0.75, None, 4000))
    text = study_report.write(study, list(runs.values()), tmp_path)
    heading, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    assert heading == "| arm | critic sees | seeds | pass@1 | pass@8 | unsolved then solved | tokens generated (k) |"
    assert rule.count("---") == 7
    assert rows == [
        "| before training |  | 2 | 0.375 (0.250-0.500) | 0.625 (0.500-0.750) |  |  |",
        "| Top | all | 2 | 0.625 (0.500-0.750) | 0.875 (0.750-1.000) | 0.500 | 2 (1-4) |",
    ]
    assert "### Hard ones" in text and "### Easy ones" not in text
    assert "4 of 9 runs done." in text
    assert (tmp_path / "table.md").read_text() == text
    results = json.loads((tmp_path / "results.json").read_text())
    assert [(r["arm"], r["seed"]) for r in results] == [("warm_start", 0), ("top", 0), ("warm_start", 1), ("top", 1)]
    assert results[3]["summary"]["num_tokens"] == 4000 and results[3]["overrides"]["objective.gamma"] == 0.2


def test_the_table_tells_which_seeds_are_missing(study, tmp_path):
    runs = {run.name: run for run in study_lib.plan(study, tmp_path)}
    finish(runs["hard/warm_start/seed0"], summary(None, None, None, 0))
    finish(runs["hard/top/seed0"], summary())
    text = study_report.write(study, list(runs.values()), tmp_path)
    assert "| Top | all | 1 of 2 | 0.500 | 0.750 | 0.125 | 2 |" in text


def test_cpu_time_and_commit_are_those_of_the_processes(start, tmp_path):
    start(only="hard/top/seed0")
    log = tmp_path / "runs/processes.jsonl"
    records = [json.loads(line) for line in log.read_text().splitlines()]
    assert [record["run"] for record in records] == ["hard/warm_start/seed0", "hard/top/seed0"]
    assert all(record["cpu_seconds"] > 0 and record["exit_code"] == 0 for record in records)
    changes = {"commit": "abc", "cpus": 3, "cpu_seconds": 5400}
    log.write_text("".join(json.dumps(record | changes) + "\n" for record in records))
    assert start(report=True) == ([], False)
    assert "commit abc; 3 CPUs; 3.0 hours of CPU time" in (tmp_path / "runs/table.md").read_text()


def test_entropy_is_the_mean_and_range_over_seeds_where_rows_were_trained(study, tmp_path):
    runs = [run for run in study_lib.plan(study, tmp_path) if (run.setting, run.arm) == ("hard", "top")]
    for run in runs:
        finish(run, summary())
    assert study_report.curve(runs, "entropy") == [(0, 1.0, 0.5, 1.5)]
    assert study_report.curve(runs, "refined/entropy") == [(0, 1.0, 1.0, 1.0)]


def test_entropy_is_plotted_where_matplotlib_is_installed(start, tmp_path):
    start(entropy=["top"])
    installed = importlib.util.find_spec("matplotlib") is not None
    assert (tmp_path / "runs/entropy.png").exists() == installed
    page = (tmp_path / "runs/report.html").read_text()
    about = json.loads(re.search(r'<script type="application/json" id="about">(.*?)</script>', page).group(1))
    assert {run["name"]: about["arms"][run["arm"]] for run in about["runs"]} == {
        "hard/plain/seed0": "Plain (hard)",
        "hard/top/seed0": "Top (hard)",
        "hard/top/seed1": "Top (hard)",
        "easy/top/seed0": "Top (easy)",
        "easy/top/seed1": "Top (easy)",
    }


def test_without_matplotlib_the_plot_is_left_out_and_a_line_says_how_to_get_it(start, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    start(only="hard/top/seed0")
    assert "pip install" not in capsys.readouterr().out  # a study that plots nothing needs none
    start(only="hard/top/seed0", entropy=["top"])
    assert "pip install -e '.[report]'" in capsys.readouterr().out
    assert not (tmp_path / "runs/entropy.png").exists()


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"jobs": 0}, "--jobs=0 runs nothing"),
        ({"only": "["}, r"--only=\[ is not a regular expression"),
        ({"only": "nothing"}, "--only=nothing matches no run; the first is hard/top/seed0"),
        ({"report": True}, "does not exist; leave --report out"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(start, tmp_path, flags, message):
    with pytest.raises(UserError, match=message):
        start(**flags)
    assert (tmp_path / "bench/started").read_text() == "" and not (tmp_path / "runs").exists()


def test_a_study_file_that_can_not_be_used_is_named(study, tmp_path):
    path = tmp_path / "study.py"
    with pytest.raises(UserError, match="study.py does not exist"):
        study_lib.load(str(path))
    for text, message in [
        ("x = 1", "it lacks 'get_study'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def get_study():\n    return {'config': ''}", "it lacks 'arms, entropy, settings in get_study"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            study_lib.load(str(path))
    arm = study["arms"][0]
    for changed, message in [
        ([study], r"get_study\(\) is \[.*, not a dict of arms, config, entropy, settings"),
        (study | {"arms": 3}, "arms is 3, not a list of dicts"),
        (study | {"arms": ["plain"]}, "one of arms is 'plain', not a dict"),
        (study | {"config": None}, "config is None, not a path"),
        (study | {"entropy": "top"}, "entropy is 'top', not a list of names of arms"),
        (study | {"measured": 3}, "measured is 3, not a text, of what the columns are"),
        (study | {"columns": "pass@1"}, "columns is 'pass@1', not a list of columns of the table"),
        (study | {"columns": ["pass@1"]}, r"one of columns is 'pass@1', not a column, such as \('pass@1', \('after'"),
        (study | {"columns": [("a", ("b",), 1)]}, r"one of columns is \('a', \('b',\), 1\), not a column, such as"),
        (study | {"columns": [(7, ("b",), 1, 3)]}, "the name of a column is 7, not a string"),
        (study | {"columns": [("a", "b", 1, 3)]}, "column a's path is 'b', not a list of keys"),
        (study | {"columns": [("a", ("b", 2), 1, 3)]}, "a key of column a's path is 2, not a string"),
        (study | {"columns": [("a", ("b",), 0, 3)]}, "column a's unit is 0, not a number by which values are divided"),
        (study | {"columns": [("a", ("b",), True, 3)]}, "column a's unit is True, not a number"),
        (study | {"columns": [("a", ("b",), "1", 3)]}, "column a's unit is '1', not a number"),
        (study | {"columns": [("a", ("b",), 1, 0.5)]}, "column a's digits are 0.5, not a whole number from 0"),
        (study | {"columns": [("a", ("b",), 1, -1)]}, "column a's digits are -1, not a whole number from 0"),
        (study | {"arms": [arm | {"name": 7}]}, "a name is 7, not a string"),
        (study | {"arms": [arm | {"seeds": 3}]}, r"plain's seeds is 3, not a list of numbers, such as \[0, 1\]"),
        (study | {"arms": [arm | {"seeds": ["a"]}]}, "one of plain's seeds is 'a', not a whole number"),
        (study | {"arms": [arm | {"overrides": None}]}, "plain's overrides is None, not a dict"),
        (study | {"settings": [study["settings"][0] | {"overrides": [1]}]}, r"hard's overrides is \[1\], not a dict"),
    ]:
        path.write_text(f"def get_study():\n    return {changed!r}\n")
        with pytest.raises(UserError, match=message):
            study_lib.load(str(path))
    for overrides, message in (({"num_responses": 0}, "num_responses 0"), ({"objective.gamma": -1.0}, "gamma -1")):
        study["arms"][0]["overrides"] = overrides
        with pytest.raises(UserError, match=f"hard/plain/seed0: .*{message}"):
            study_lib.plan(study, tmp_path)
        assert len(study_lib.plan(study, tmp_path, trains=False)) == 9
    study["arms"][0]["overrides"] = {"gama": 0.2}
    with pytest.raises(UserError, match="unknown config key --config.gama .did you mean --config.objective.gamma"):
        study_lib.plan(study, tmp_path)
