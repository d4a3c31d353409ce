"""All studies of a list in one folder, with a stand-in for training; what the committed ones compare."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import paths
import patience
import pytest
from stand_in_study import CONFIG, STAND_IN, files_of, summary

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import recipes

sys.path.insert(0, str(paths.ROOT / "launch"))  # as `python launch/study.py` has it
import registration  # noqa: E402
import study as study_lib  # noqa: E402
import study_file  # noqa: E402
import study_list  # noqa: E402
import study_results  # noqa: E402
import study_sharing  # noqa: E402

PLAIN = {"name": "plain", "label": "Plain", "sees": "nothing", "overrides": {"refine.kind": "none"}, "headline": True}
TOP = {"name": "top", "label": "Top", "sees": "all", "overrides": {"objective.gamma": 0.2}, "headline": True}
OTHER = {"name": "other", "label": "Other", "sees": "all", "overrides": {"objective.gamma": 0.3}, "headline": True}


def study_of(tmp_path, *arms, **more):
    setting = {"name": "hard", "label": "Hard ones", "overrides": {}, "headline_only": False}
    return {
        "config": str(tmp_path / "config.py"),
        "question": "Is it so?",
        "paper": "It is so.",
        "settings": [setting | {"minutes": {"run": 6.0, "warm_start": 3.0}}],
        "arms": [dict(arm) | {"seeds": [0, 1]} for arm in arms],
        "columns": [("pass@1", ("eval_after", "pass@1"), 1, 3), ("tokens", ("num_tokens",), 1000, 0)],
        "decides": "pass@1",
        "measured": "pass@1.",
        "entropy": [],
        **more,
    }


@pytest.fixture
def studies(tmp_path):
    """Two studies, which share an arm under two names."""
    (tmp_path / "config.py").write_text(CONFIG)
    renamed = TOP | {"name": "high", "label": "High"}
    found = {
        "first": study_of(tmp_path, PLAIN, TOP | {"against": {"plain": "above"}}),
        "second": study_of(tmp_path, renamed, OTHER | {"against": {"high": "below"}}),
    }
    for name, study in found.items():
        (tmp_path / f"{name}.py").write_text(f"def get_study():\n    return {study!r}\n")
    listed = [str(tmp_path / f"{name}.py") for name in found]
    (tmp_path / "order.py").write_text(f"def get_order():\n    return {listed!r}\n")
    return found


@pytest.fixture
def start(tmp_path, studies):
    """Returns a function that runs all studies with the stand-in, and returns the folders that it started."""
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "stand_in.py").write_text(STAND_IN)
    workdir, results = tmp_path / "work", tmp_path / "results"

    def start(bad=None, **flags):
        if bad:
            (bench / "bad").write_text(bad)
        else:
            (bench / "bad").unlink(missing_ok=True)
        (bench / "started").write_text("")
        expected = {}
        for study in studies.values():
            for run in study_lib.plan(study, workdir.resolve(), shared=True):
                better = 0.25 * ("gamma" in str(run.overrides)) + 0.0625 * run.seed
                result = summary(0.25, 0.5 + better) if run.needs else summary(None, None, None, 0)
                expected[str(run.folder)] = files_of(run, result)
        (bench / "expected.json").write_text(json.dumps(expected))
        given = {"study": "", "workdir": str(workdir), "jobs": 2, "only": "", "report": False, "all": True}
        given |= {"order": str(tmp_path / "order.py"), "results": str(results), "hours": 1.0} | flags
        command = (sys.executable, "-S", str(bench / "stand_in.py"))
        try:
            study_lib.main(**given, command=command)
            failed = False
        except SystemExit as stop:
            assert stop.code == 1
            failed = True
        return [pathlib.Path(one).relative_to(workdir) for one in (bench / "started").read_text().split()], failed

    return start


def read(tmp_path, name):
    return json.loads((tmp_path / "results" / f"{name}.json").read_text())


# --- running ------------------------------------------------------------------------------------------------------


def test_all_studies_run_once_and_equal_runs_are_one(start, tmp_path, capsys):
    started, failed = start()
    # Two warm starts, two seeds of plain, top (which the second study calls high) and other.
    assert not failed and len(started) == len(set(started)) == 2 + 2 * 3
    assert {one.parts[0] for one in started} == {"runs"}
    first, second = read(tmp_path, "first"), read(tmp_path, "second")
    assert [(row["arm"], row["seed"]) for row in first["rows"]] == [
        ("plain", 0), ("top", 0), ("plain", 1), ("top", 1),
    ]  # fmt: skip
    assert [row["numbers"]["pass@1"] for row in first["rows"]] == [0.5, 0.75, 0.5625, 0.8125]
    shared = {row["run"] for row in first["rows"] if row["arm"] == "top"}
    assert shared == {row["run"] for row in second["rows"] if row["arm"] == "high"}
    assert (first["place"], second["place"], first["runs"]) == (0, 1, 4)
    assert all(row["machine_seconds"] > 0 for row in first["rows"])
    assert first["registered"]["commit"] == "" and first["tasks"] == ["chains 2"]
    assert first["predicted_minutes"] == 2 * 3 + 4 * 6
    assert "# Studies" in (tmp_path / "results" / "README.md").read_text()
    for name in ("table.md", "results.json", "report.html"):
        assert (tmp_path / "work" / "first" / name).exists()
    out = capsys.readouterr().out
    assert "first: Is it so?" in out and "of 1 hours are used" in out and "left out" not in out
    before = {name: (tmp_path / "results" / f"{name}.json").read_text() for name in ("first", "second")}
    assert start() == ([], False)
    assert before == {name: (tmp_path / "results" / f"{name}.json").read_text() for name in before}


def test_when_the_hours_are_used_no_further_run_starts_and_what_is_left_is_said(start, tmp_path, capsys):
    started, failed = start(hours=1e-9, jobs=1)
    assert len(started) == 1 and not failed
    out = capsys.readouterr().out
    assert "left out: first: 4 of 4 runs" in out and "left out: second: 4 of 4 runs" in out
    assert read(tmp_path, "second")["rows"] == [] and read(tmp_path, "second")["runs"] == 4
    assert len(start()[0]) == 7  # the others
    assert "left out" not in capsys.readouterr().out


KILLED = """
import json, signal, sys
sys.path.insert(0, sys.argv[1])
import study
signal.signal(signal.SIGTERM, signal.default_int_handler)  # as the program does
study.main(**json.loads(sys.argv[2]))
"""


def test_studies_that_are_killed_go_on_where_they_were(start, tmp_path, studies):
    with pytest.raises(UserError, match="matches no run"):
        start(only="third/")  # what the stand-in writes is there now
    bench, workdir = tmp_path / "bench", tmp_path / "work"
    slow = {run.name: run for run in study_lib.plan(studies["first"], workdir.resolve(), shared=True)}["hard/top/seed1"]
    (bench / "slow").write_text(slow.folder.name)
    given = {"study": "", "workdir": str(workdir), "jobs": 2, "only": "", "report": False, "all": True, "hours": 1.0}
    given |= {"order": str(tmp_path / "order.py"), "results": str(tmp_path / "results")}
    given |= {"command": [sys.executable, "-S", str(bench / "stand_in.py")]}
    command = [sys.executable, "-c", KILLED, str(paths.ROOT / "launch"), json.dumps(given)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths.python_path()}, cwd=tmp_path)
    deadline = time.monotonic() + patience.seconds(120)
    while slow.folder.name not in (bench / "started").read_text():
        with contextlib.suppress(subprocess.TimeoutExpired):
            pytest.fail(f"it ended with status {process.wait(0.1)}")
        assert time.monotonic() < deadline
    process.terminate()
    assert process.wait() != 0
    kept = [json.loads(line) for line in (workdir / "processes.jsonl").read_text().splitlines()]
    stopped = [one for one in kept if one["folder"] == f"runs/{slow.folder.name}"]
    assert [one["exit_code"] for one in stopped] == [-signal.SIGTERM] and stopped[0]["seconds"] > 0
    done = {pathlib.Path(one["folder"]) for one in kept if one["exit_code"] == 0}
    assert not (tmp_path / "results").exists() or not list((tmp_path / "results").glob("*.json"))
    (bench / "slow").unlink()
    started, failed = start()
    assert not failed and not done & set(started) and len(done) + len(started) == 8
    rows = read(tmp_path, "first")["rows"]
    assert [row["numbers"]["pass@1"] for row in rows] == [0.5, 0.75, 0.5625, 0.8125]
    assert read(tmp_path, "first")["cost"]["machine_seconds"] >= stopped[0]["seconds"] / 2


def test_only_names_studies_too(start, tmp_path):
    assert len(start(only="^second/.*/other/seed1")[0]) == 2  # and its warm start
    assert [row["arm"] for row in read(tmp_path, "second")["rows"]] == ["other"]
    assert read(tmp_path, "first")["rows"] == []
    with pytest.raises(UserError, match="--only=third/ matches no run; the first study is first"):
        start(only="third/")


def test_another_folder_takes_no_rows_from_what_was_found(start, tmp_path, studies):
    start()
    before = {name: read(tmp_path, name) for name in ("first", "second")}
    elsewhere = {"workdir": str(tmp_path / "other")}
    (tmp_path / "other").mkdir()
    assert start(report=True, only="^first/", **elsewhere) == ([], False)
    assert {name: read(tmp_path, name) for name in before} == before  # neither what is asked for, nor what is not
    assert start(report=True, **elsewhere) == ([], False)
    assert {name: read(tmp_path, name) for name in before} == before
    # What ran here is of here; a run that a study no longer has goes, and one of another name stays.
    second = studies["second"]
    second["arms"] = [second["arms"][0] | {"name": "higher", "against": {}}]
    (tmp_path / "second.py").write_text(f"def get_study():\n    return {second!r}\n")
    assert start(report=True, **elsewhere) == ([], False)
    after = read(tmp_path, "second")
    assert [(row["arm"], row["seed"]) for row in after["rows"]] == [("higher", 0), ("higher", 1)]
    old = {row["run"]: row["numbers"] for row in before["second"]["rows"]}
    assert [row["numbers"] for row in after["rows"]] == [old[row["run"]] for row in after["rows"]]
    gone = [row for row in before["second"]["rows"] if row["arm"] == "other"]
    cost = {name: one["cost"]["machine_seconds"] for name, one in (("before", before["second"]), ("after", after))}
    assert cost["after"] == pytest.approx(cost["before"] - sum(row["machine_seconds"] for row in gone), abs=0.01)


def test_results_with_what_ran_in_two_folders(start, tmp_path):
    start(only="^first/.*/plain/")
    first = read(tmp_path, "first")
    taken, (own,) = first["cost"]["taken"], [row for row in first["rows"] if row["seed"] == 0]
    kept = tmp_path / "work" / "processes.jsonl"
    (tmp_path / "work" / own["run"] / "summary.json").unlink()  # as in a folder without it
    rows = [json.loads(line) for line in kept.read_text().splitlines()]
    others = [row | {"commit": "elsewhere"} for row in rows if row["folder"] != own["run"]]
    kept.write_text("".join(json.dumps(row) + "\n" for row in others))
    start(report=True)
    again = read(tmp_path, "first")
    assert again["rows"] == first["rows"] and again["cost"]["taken"] == taken
    assert again["cost"]["machine_seconds"] == first["cost"]["machine_seconds"]
    assert set(again["cost"]["commits"]) == {"elsewhere", *first["cost"]["commits"]}
    start(report=True)
    assert read(tmp_path, "first") == again  # nothing is counted twice


def test_a_damaged_file_of_results_is_said_before_anything_runs(start, tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "second.json").write_text("{")
    with pytest.raises(UserError, match="second.json is not valid JSON"):
        start()
    assert (tmp_path / "bench" / "started").read_text() == ""


def test_a_run_that_fails_stops_no_other_study(start, tmp_path):
    bad = start(only="first/hard/plain/seed0")[0][-1]
    for name in ("config.json", "summary.json"):
        (tmp_path / "work" / bad / name).unlink()
    (tmp_path / "results" / "first.json").unlink()  # else its row would stay
    started, failed = start(bad=str(bad))
    assert failed and len(started) == 7
    assert len(read(tmp_path, "second")["rows"]) == 4 and len(read(tmp_path, "first")["rows"]) == 3


def test_a_run_of_two_studies_that_fails_is_started_and_told_of_once(start, tmp_path, studies, capsys):
    runs = {run.name: run for run in study_lib.plan(studies["first"], (tmp_path / "work").resolve(), shared=True)}
    bad = runs["hard/top/seed0"].folder.name
    started, failed = start(bad=bad)
    assert failed and [one.name for one in started].count(bad) == 1 and len(started) == 8
    out = capsys.readouterr().out
    assert "hard/high/seed0: not started, it has failed as hard/top/seed0" in out
    assert out.endswith("1 runs failed: hard/top/seed0\n")
    # The second study's own arms need the warm start that the first has started in vain.
    bad = runs["hard/warm_start/seed1"].folder.name
    for name in runs:
        if name.endswith("seed1"):
            for path in (tmp_path / "work" / "runs" / runs[name].folder.name).iterdir():
                path.unlink()
    started, failed = start(bad=bad)
    assert failed and [one.name for one in started].count(bad) == 1
    out = capsys.readouterr().out
    assert "hard/other/seed1: not started, it needs hard/warm_start/seed1" in out
    names = ", ".join(f"hard/{arm}/seed1" for arm in ("warm_start", "plain", "top", "other"))
    assert out.endswith(f"4 runs failed: {names}\n")


def test_a_report_writes_what_is_there_and_runs_nothing(start, tmp_path):
    start(only="first/")
    before = read(tmp_path, "first")
    for path in (tmp_path / "results").iterdir():
        path.unlink()
    assert start(report=True) == ([], False)
    assert read(tmp_path, "first") == before and len(read(tmp_path, "second")["rows"]) == 2


def test_a_study_by_itself_writes_its_numbers_where_it_is_asked(start, tmp_path, studies):
    runs = study_lib.plan(studies["first"], tmp_path / "alone")
    for run in runs:
        run.folder.mkdir(parents=True)
        for name, content in files_of(run, summary() if run.needs else summary(None, None, None, 0)).items():
            (run.folder / name).write_text(content)
    given = {"study": str(tmp_path / "first.py"), "workdir": str(tmp_path / "alone"), "jobs": 1, "only": ""}
    study_lib.main(**given, report=True, results=str(tmp_path / "results"))
    assert len(read(tmp_path, "first")["rows"]) == 4 and read(tmp_path, "first")["place"] == 0
    path = tmp_path / "results" / "first.json"
    path.write_text(json.dumps(read(tmp_path, "first") | {"place": 5}))  # as a list has it
    study_lib.main(**given, report=True, results=str(tmp_path / "results"))
    assert read(tmp_path, "first")["place"] == 5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"study": "a.py"}, "--study and --all: give one of"),
        ({"all": False}, "nothing to do: give one of --study=FILE, --all, --page"),
        ({"workdir": ""}, "--workdir=DIR is missing"),
        ({"hours": 0.0}, "--hours=0 runs nothing"),
        ({"order": "nothing.py"}, "--order nothing.py does not exist"),
        ({"report": True}, "does not exist; leave --report out"),
    ],
)
def test_a_mistake_is_one_line(start, flags, message):
    with pytest.raises(UserError, match=message):
        start(**flags)


def test_a_list_that_names_a_study_twice_is_refused(tmp_path):
    (tmp_path / "order.py").write_text("def get_order():\n    return ['a/x.py', 'b/x.py']\n")
    with pytest.raises(UserError, match="names x twice"):
        study_list.paths_of(tmp_path / "order.py")
    (tmp_path / "order.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"fails to load \(division by zero\)"):
        study_list.paths_of(tmp_path / "order.py")


# --- shared runs --------------------------------------------------------------------------------------------------


def folders(study, workdir):
    return {run.name: run.folder for run in study_lib.plan(study, workdir, shared=True)}


def test_the_folder_of_a_run_is_of_what_makes_it_alone(tmp_path, studies):
    one = folders(studies["first"], tmp_path / "a")
    assert len(set(one.values())) == len(one) == 6
    assert {path.name for path in one.values()} == {p.name for p in folders(studies["first"], tmp_path / "b").values()}
    default = TOP | {"overrides": TOP["overrides"] | {"objective.clip_low": 0.2}}
    assert folders(study_of(tmp_path, PLAIN, default), tmp_path / "a") == one  # a key at its default changes nothing
    other = TOP | {"overrides": TOP["overrides"] | {"objective.clip_low": 0.1}}
    changed = folders(study_of(tmp_path, PLAIN, other), tmp_path / "a")
    assert {name for name in one if one[name] != changed[name]} == {"hard/top/seed0", "hard/top/seed1"}


def test_work_of_another_default_is_named_before_anything_starts(start, tmp_path, studies):
    start()
    runs = {run.name: run for run in study_lib.plan(studies["second"], (tmp_path / "work").resolve(), shared=True)}
    folder = runs["hard/other/seed1"].folder
    config = json.loads((folder / "config.json").read_text())
    config["objective"]["clip_low"] = 0.15  # as a default was, which the digest leaves out
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "checkpoints" / "5").mkdir(parents=True)
    wrong = r"study second: .*runs/\w+ holds hard/other/seed1 with another .* \(objective.clip_low: 0.15 -> 0.2\)"
    with pytest.raises(UserError, match=wrong):
        start()
    assert (tmp_path / "bench" / "started").read_text() == ""
    assert start(only="^first/") == ([], False)  # which has no such run
    assert start(report=True) == ([], False)
    # Without a checkpoint there is no work: the run starts again. One that goes on with what is free may go on.
    (folder / "checkpoints" / "5").rmdir()
    assert [one.name for one in start()[0]] == [folder.name]
    (folder / "checkpoints" / "5").mkdir()
    (folder / "summary.json").unlink()
    config = json.loads((folder / "config.json").read_text())
    config["checkpoints"]["keep"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    assert [one.name for one in start()[0]] == [folder.name]


def test_a_recipe_of_another_default_is_named_too(tmp_path, studies):
    recipe = f"{paths.CONFIGS / 'recipes' / 'raft.py'}:num_responses=4"
    study = study_of(tmp_path, PLAIN | {"overrides": {}, "recipe": recipe}) | {"warm_start": False}
    run = study_lib.plan(study, tmp_path / "w", trains=False, shared=True)[0]
    run.folder.mkdir(parents=True)
    kept = recipes.kept_of(run.steps)
    (run.folder / "recipe.json").write_text(json.dumps(kept))
    study_sharing.check_folders("one", [run])
    kept["steps"][-1]["config"]["objective"]["clip_low"] = 0.15
    (run.folder / "recipe.json").write_text(json.dumps(kept))
    with pytest.raises(UserError, match=r"study one: .* holds hard/plain/seed0 with another .*clip_low: 0.15 -> 0.2"):
        study_sharing.check_folders("one", [run])


def test_another_warm_start_makes_other_runs_and_settings_with_one_share_it(tmp_path, studies):
    study = studies["first"]
    again = study["settings"][0] | {"name": "again"}
    rare = study["settings"][0] | {"name": "rare", "overrides": {"warm_start.num_updates": 6}}
    runs = study_lib.plan(study | {"settings": [study["settings"][0], again, rare]}, tmp_path, shared=True)
    at = {run.name: run for run in runs}
    assert "again/warm_start/seed0" not in at and at["again/top/seed0"].needs is at["hard/warm_start/seed0"]
    assert at["again/top/seed0"].folder == at["hard/top/seed0"].folder != at["rare/top/seed0"].folder
    assert at["rare/top/seed0"].needs is at["rare/warm_start/seed0"]
    assert len(study_sharing.distinct(runs)) == 2 * (1 + 2) * 2


def test_a_recipe_is_shared_by_its_steps(tmp_path, studies):
    def arm(name, responses):
        recipe = f"{paths.CONFIGS / 'recipes' / 'raft.py'}:num_responses={responses}"
        return PLAIN | {"name": name, "overrides": {}, "recipe": recipe, "result": "learnt"}

    study = study_of(tmp_path, arm("a", 4), arm("b", 4), arm("c", 5))
    runs = study_lib.plan(study, tmp_path / "w", trains=False, shared=True)
    at = {run.name: run for run in runs}
    a, b, c = (at[f"hard/{name}/seed0"] for name in "abc")
    assert a.folder == b.folder != c.folder and a.steps[0].folder.parent == a.folder
    with pytest.raises(UserError, match="hard/a/seed0: result is 'nothing', which is no step"):
        study_lib.plan(study_of(tmp_path, arm("a", 4) | {"result": "nothing"}), tmp_path, trains=False, shared=True)


def test_numbers_of_a_recipe_are_those_of_its_result(tmp_path, studies):
    recipe = f"{paths.CONFIGS / 'recipes' / 'raft.py'}:num_responses=4"
    arm = PLAIN | {"overrides": {}, "recipe": recipe, "result": "learnt"}
    columns = [("pass@1", ("eval_after", "pass@1"), 1, 3), ("loss", ("metrics", "loss", "last"), 1, 3)]
    study = study_of(tmp_path, arm, columns=columns) | {"warm_start": False}
    run = study_lib.plan(study, tmp_path / "w", trains=False, shared=True)[0]
    (run.folder / "learnt").mkdir(parents=True)
    (run.folder / "recipe.json").write_text(json.dumps(recipes.kept_of(run.steps)))
    (run.folder / "learnt" / "metrics.jsonl").write_text('{"loss": 3}\n' * 19 + '{"loss": 1}\n')
    found = [{"step": one.step.name, "command": one.step.command, "num_tokens": 7} for one in run.steps]
    for one in found:
        one["eval_after"] = {"pass@1": 0.5 if one["step"] == "learnt" else 0.0}
    (run.folder / "results.json").write_text(json.dumps(found))
    numbers = study_results.numbers(study, [run], tmp_path / "w", registration.Registration("", "", (), ()))
    assert numbers["rows"][0]["numbers"] == {"pass@1": 0.5, "loss": 2.0}
    assert "num_tokens" not in run.summary()  # those that it learned are not such as were sampled


def test_machine_time_is_shared_by_what_runs_side_by_side():
    assert study_results.machine_seconds([{"seconds": 60, "jobs": 2}, {"seconds": 60, "jobs": 2}]) == 60
    assert study_results.machine_seconds([{"seconds": 60}]) == 60  # of an older version


def test_the_prediction_counts_a_shared_run_once(tmp_path, studies):
    listed = [
        study_list.Listed(name, study, study_lib.plan(study, tmp_path, shared=True), None)
        for name, study in studies.items()
    ]
    assert study_list.prediction(listed).splitlines()[2:] == [
        "| [first](first.py) | 4 | 0 | 0.5 | 0.5 |",  # 2 * 3 + 4 * 6 minutes
        "| [second](second.py) | 4 | 2 | 0.2 | 0.7 |",  # 2 * 6 minutes
    ]


# --- registration -------------------------------------------------------------------------------------------------


def test_a_study_is_registered_by_the_last_commit_of_what_it_is_made_of(tmp_path):
    configs = tmp_path / "configs"
    (configs / "studies").mkdir(parents=True)
    for name, text in {
        "base.py": "from cgrpo_jax.runs.base import get_config",
        "quick.py": "from configs import base\n\n\ndef get_config():\n    return base.get_config()",
        "studies/arms.py": "import configs.quick",
        "studies/one.py": "from configs.studies import arms",
        "recipe.py": "",
        "other.py": "",
    }.items():
        (configs / name).write_text(text + "\n")

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    study = {"config": str(configs / "quick.py"), "settings": [], "arms": [{"recipe": f"{configs / 'recipe.py'}:a=1"}]}

    def found():
        return registration.of_study(configs / "studies" / "one.py", study, root=tmp_path)

    assert found() == registration.Registration("", "", (), ())  # no repository
    git("init", "--quiet")
    files = ("configs/base.py", "configs/quick.py", "configs/recipe.py", "configs/studies/arms.py",
             "configs/studies/one.py")  # fmt: skip
    assert found() == registration.Registration("", "", files, files)
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    first = git("rev-parse", "--short", "HEAD")
    assert (found().commit, found().changed) == (first, ()) and found().time.endswith("+00:00")
    (configs / "other.py").write_text("x = 1\n")
    git("commit", "--quiet", "--all", "--message=second")
    assert found().commit == first
    (configs / "base.py").write_text("from cgrpo_jax.runs.base import get_config as get_config\n")
    assert found().changed == ("configs/base.py",) and found().commit == first
    git("commit", "--quiet", "--all", "--message=third")
    assert (found().commit, found().changed) == (git("rev-parse", "--short", "HEAD"), ())
    # A file that no commit has differs, also where git is told to ignore it.
    git("rm", "--quiet", "--cached", "configs/studies/one.py", "configs/recipe.py")
    (tmp_path / ".gitignore").write_text("one.py\nrecipe.py\n")
    git("commit", "--quiet", "--all", "--message=fourth")
    assert found().changed == ("configs/recipe.py", "configs/studies/one.py")
    (tmp_path / ".git" / "HEAD").write_text("nothing\n")
    with pytest.raises(UserError, match=r"git rev-list fails in .* \(.*\); a study is registered by a commit: mend"):
        found()


def test_what_the_launcher_writes_does_not_change_the_code(tmp_path):
    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def code():
        registration.code.cache_clear()
        return registration.code(tmp_path)

    assert code() == ""  # no repository
    results = tmp_path / "configs" / "results" / "studies"
    results.mkdir(parents=True)
    for path in (results / "one.json", tmp_path / "code.py"):
        path.write_text("1\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message=first")
    commit = git("rev-parse", "--short", "HEAD")
    (results / "one.json").write_text("2\n")
    assert code() == commit
    (tmp_path / "code.py").write_text("2\n")
    assert registration.code(tmp_path) == commit  # as when it was first asked
    assert code() == f"{commit}+"


def test_what_is_not_committed_does_not_run(start, monkeypatch):
    changed = registration.Registration("abc", "2026-01-01T00:00:00+00:00", ("x.py",), ("x.py",))
    monkeypatch.setattr(registration, "of_study", lambda *_: changed)
    with pytest.raises(UserError, match="study first is registered by a commit before it runs, and x.py differs"):
        start()
    assert start(predict=True) == ([], False)


# --- a study file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": 3}, "question is 3, not a text"),
        ({"decides": "pass@2"}, "decides is 'pass@2', which is no column"),
        (
            {"columns": [("a", ("metrics", "loss"), 1, 3)], "decides": "a"},
            r"path is \('metrics', 'loss'\), not such as",
        ),
        ({"arms": [PLAIN | {"seeds": [0], "against": {"top": "above"}}]}, "against 'top', which is no other arm"),
        ({"arms": [PLAIN | {"seeds": [0], "against": {"plain": ""}}]}, "against 'plain', which is no other arm"),
        ({"arms": [PLAIN | {"seeds": [0]}] * 2}, "two arms are named plain"),
        ({"arms": [PLAIN | {"seeds": [0], "times": 0}]}, "plain's times is 0, not a number above 0"),
        ({"arms": [PLAIN | {"seeds": [0], "times": "2"}]}, "plain's times is '2', not a number above 0"),
    ],
)
def test_a_mistake_in_a_study_file_is_named(tmp_path, changes, message):
    (tmp_path / "a.py").write_text(f"def get_study():\n    return {study_of(tmp_path, PLAIN) | changes!r}\n")
    with pytest.raises(UserError, match=message):
        study_file.load(str(tmp_path / "a.py"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": "3"}, "hard's seeds is '3', not a number of seeds such as 3"),
        ({"seeds": [0, 1]}, r"hard's seeds is \[0, 1\], not a number of seeds"),
        ({"seeds": 0}, "hard's seeds is 0, not"),
        ({"seeds": True}, "hard's seeds is True, not"),
        ({"config": 3}, "hard's config is 3, not a path"),
        ({"minutes": 3}, "hard's minutes is 3, not a dict of run and warm_start"),
        ({"minutes": {"runs": 3}}, "hard's minutes have 'runs', which is neither run nor warm_start"),
        ({"minutes": {"run": 0}}, "hard's minutes of a run is 0, not a number above 0"),
    ],
)
def test_a_mistake_in_a_setting_is_named(tmp_path, changes, message):
    study = study_of(tmp_path, PLAIN)
    study["settings"] = [study["settings"][0] | changes]
    (tmp_path / "a.py").write_text(f"def get_study():\n    return {study!r}\n")
    with pytest.raises(UserError, match=message):
        study_file.load(str(tmp_path / "a.py"))


def test_a_table_counts_the_seeds_that_its_setting_has(start, tmp_path, studies):
    for name, study in studies.items():
        study["settings"] = [study["settings"][0] | {"seeds": 3 if name == "first" else 1}]
        (tmp_path / f"{name}.py").write_text(f"def get_study():\n    return {study!r}\n")
    start(only="seed0|seed1")
    assert "| Plain | nothing | 2 of 3 |" in (tmp_path / "work" / "first" / "table.md").read_text()
    assert "| Other | all | 1 |" in (tmp_path / "work" / "second" / "table.md").read_text()


def test_the_papers_sign_is_above_below_or_none(tmp_path):
    study = study_of(tmp_path, PLAIN, TOP | {"against": {"plain": "better"}})
    (tmp_path / "a.py").write_text(f"def get_study():\n    return {study!r}\n")
    with pytest.raises(UserError, match="top against plain is 'better', not one of"):
        study_file.load(str(tmp_path / "a.py"))


# --- the committed studies ----------------------------------------------------------------------------------------

LISTED = study_list.paths_of(study_list.ORDER)
_LOSS = ["objective.scale_by_std", "objective.aggregate", "objective.kl_coef"]
_METHOD = ["refine.kind", "num_responses", *_LOSS]
# In which keys the arms of each study may differ.
KEYS = {
    "table_2": [*_METHOD, "critique.kind", "critic.sees", "collect.num_questions", "max_response_length"],
    "corrupted_critiques": ["critique.kind", "critique.corruption"],
    "critic_errors": [*_METHOD],
    "ladder": [*_METHOD, "refine.select", "objective.refined_ratio", "objective.clip_refined", "objective.old_logp"],
    "refined_ratio": ["num_responses", "refine.num_kept", "objective.aggregate"],
    "sequential": [*_METHOD],
    "neighbours": [
        *_METHOD, "refine.which", "refine.max_pass", "refine.num_kept", "objective.baseline", "objective.refined_ratio",
        "objective.clip_initial", "objective.entropy_coef", "critique.when", "distil.kind", "distil.average_rate",
        "distil.teacher",
    ],
    "learning_rate": [*_METHOD, "optimizer.learning_rate", "collect.num_questions"],
    "persistent_failures": [],
    "critics": [*_METHOD, "critique.kind"],
    "weak_to_strong": [*_METHOD, "critique.kind"],
    "gamma": ["objective.gamma"],
    "kept": ["refine.num_kept"],
    "critique_length": ["prompts.refine"],
    "curriculum": ["critique.kind", "critique.schedule"],
    "entropy_and_length": [*_METHOD],
    "pass_at_k": [*_METHOD],
    "cost": [*_METHOD],
}  # fmt: skip


def one_seed(path):
    """Returns a committed study of a single seed."""
    study = study_file.load(str(path))
    settings = [{key: value for key, value in one.items() if key != "seeds"} for one in study["settings"]]
    return study | {"settings": settings, "arms": [arm | {"seeds": [0]} for arm in study["arms"]]}


def test_the_list_begins_with_what_matters_most():
    names = [path.stem for path in LISTED]
    assert names == list(KEYS) and all(path.is_file() for path in LISTED)
    assert names[:7] == [
        "table_2", "corrupted_critiques", "critic_errors", "ladder", "refined_ratio", "sequential", "neighbours",
    ]  # fmt: skip


@pytest.mark.parametrize("path", LISTED, ids=lambda path: path.stem)
def test_every_arm_can_run_and_differs_from_the_others_in_what_its_study_is_of(tmp_path, path):
    study = study_file.load(str(path))
    seeds = [arm["seeds"] for arm in study["arms"]] + [
        range(one["seeds"]) for one in study["settings"] if "seeds" in one
    ]
    assert all(list(some) == list(range(len(some))) and len(some) >= 3 for some in seeds)
    assert (
        study["question"] and study["paper"] and study["decides"] and any(arm.get("against") for arm in study["arms"])
    )
    runs = [run for run in study_lib.plan(one_seed(path), tmp_path, shared=True) if run.is_arm]
    for setting in {run.setting for run in runs}:
        own = [run for run in runs if run.setting == setting]
        assert len({run.folder for run in own}) == len(own)  # no two arms are one
        for run in own[1:]:
            assert config_lib.differences(own[0].config, run.config, KEYS[path.stem]) == [], run.name


def test_arms_of_one_name_are_one_run_in_all_studies(tmp_path):
    """So what Table 2 has run serves as the baseline of the others."""
    folders: dict = {}
    for path in LISTED:
        if path.stem == "pass_at_k":  # whose arms evaluate more
            continue
        for run in study_lib.plan(one_seed(path), tmp_path, shared=True):
            if run.name.startswith("chains/") and path.stem != "persistent_failures":
                folders.setdefault(run.name, set()).add(run.folder)
    assert len(folders) > 40 and {name: some for name, some in folders.items() if len(some) > 1} == {}
    first = {name: next(iter(some)) for name, some in folders.items()}
    assert first["chains/execution/seed0"] == first["chains/execution_once/seed0"] == first["chains/paper_7_1/seed0"]
    assert first["chains/shaped/seed0"] == first["chains/constant_7_1/seed0"]


def test_the_readme_has_the_list_whose_first_seven_studies_fit_in_ten_hours(tmp_path):
    listed = study_list.load(study_list.ORDER, tmp_path, study_lib.plan, trains=False)
    table = study_list.prediction(listed)
    assert table in study_list.ORDER.with_name("README.md").read_text()
    so_far = [float(line.split(" | ")[-1].rstrip(" |")) for line in table.splitlines()[2:]]
    assert so_far == sorted(so_far) and 0 < so_far[6] < 10


def test_no_study_names_a_number_that_the_quickstart_has():
    """Iterations, learning rate and gamma are the quickstart's, or shares of them."""
    for path in [*LISTED, study_list.ORDER.with_name("arms.py"), study_list.ORDER.with_name("steps.py")]:
        text = path.read_text()
        assert "num_iterations=" not in text and '"optimizer.learning_rate": 0' not in text
        assert '"objective.gamma": 0' not in text
