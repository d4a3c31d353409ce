"""The launcher of sweeps and what builds their points, with a stand-in for training that writes files at once."""

import contextlib
import json
import pathlib
import re
import signal
import sys

import paths
import pytest
from bucket_fixtures import bucket  # noqa: F401 - a fixture

from cgrpo_jax.errors import UserError

ROOT = paths.ROOT

sys.path.insert(0, str(ROOT / "launch"))  # as `python launch/sweep.py` has it
import runner  # noqa: E402
import sweep as sweep_lib  # noqa: E402
from points import cross, points, product, zip_  # noqa: E402

FOUR = {"objective.gamma": (0.01, 0.1), "objective.aggregate": ("constant", "paper")}
NAMES = [f"objective.gamma={gamma},objective.aggregate={how}" for gamma in (0.01, 0.1) for how in ("constant", "paper")]
CONFIG = (
    "from configs import base\n\ndef get_config():\n    c = base.get_config()\n    c.num_iterations = 6\n    return c\n"
)

# Does what `train` does to a folder: leaves half a run where a file says so, fails where another one does.
STAND_IN = """
import json, os, pathlib, sys
here = pathlib.Path(__file__).parent
folder = next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2]
resumed = os.path.exists(folder + "/config.json")
with (here / "started").open("a") as file:
    file.write(os.path.basename(folder) + (" resumed" if resumed else "") + chr(10))
print("log of", os.path.basename(folder))
if (here / "bad").exists() and (here / "bad").read_text() in folder:
    sys.exit("error: no luck")
os.makedirs(folder, exist_ok=True)
config = json.loads((here / "expected.json").read_text())[os.path.basename(folder)]
pathlib.Path(folder, "config.json").write_text(json.dumps(config))
if (here / "half").exists() and (here / "half").read_text() in folder:
    os.kill(os.getppid(), 15)
    import signal
    signal.pause()
summary = {"eval_before": {"pass@1": 0.25, "pass@8": 0.5}, "eval_after": {
    "pass@1": config["objective"]["gamma"], "pass@8": None},
           "unsolved_before_solved_after": 0.125, "num_tokens": 2000, "iterations": 6}
pathlib.Path(folder, "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def start(tmp_path):
    """Returns a function that runs the sweep with the stand-in, and returns the points it started and if any failed."""
    bench = tmp_path / "bench"
    bench.mkdir()
    (bench / "config.py").write_text(CONFIG)
    (bench / "stand_in.py").write_text(STAND_IN)

    def start(axes=FOUR, bad=None, half=None, **flags):
        for name, content in (("bad", bad), ("half", half)):
            (bench / name).unlink(missing_ok=True)
            if content:
                (bench / name).write_text(content)
        (bench / "started").write_text("")
        sweep = {"config": str(bench / "config.py"), "points": product(axes)}
        (bench / "sweep.py").write_text(f"def get_sweep():\n    return {sweep!r}\n")
        with contextlib.suppress(UserError):  # of a sweep with a mistake, which starts nothing
            expected = {point.folder.name: point.config for point in sweep_lib.plan(sweep, tmp_path / "runs")}
            (bench / "expected.json").write_text(json.dumps(expected))
        values = {"jobs": 1, "slices": "", "only": "", "dry_run": False, "command": []} | flags
        values = {"sweep": str(bench / "sweep.py"), "workdir": str(tmp_path / "runs")} | values
        failed = False
        try:
            sweep_lib.main(train=(sys.executable, "-S", str(bench / "stand_in.py")), **values)
        except SystemExit as stop:
            assert stop.code == 1
            failed = True
        return (bench / "started").read_text().splitlines(), failed

    return start


# --- points -------------------------------------------------------------------------------------------------------


def test_product_has_every_combination_and_the_last_key_varies_fastest():
    found = product(FOUR)
    assert list(found) == NAMES
    assert found["objective.gamma=0.01,objective.aggregate=paper"] == {
        "objective.gamma": 0.01,
        "objective.aggregate": "paper",
    }


def test_zip_has_the_values_side_by_side():
    found = zip_({"objective.gamma": (0.01, 0.1), "optimizer.learning_rate": (1e-6, 3e-6)})
    assert found == {
        "objective.gamma=0.01,optimizer.learning_rate=1e-06": {
            "objective.gamma": 0.01,
            "optimizer.learning_rate": 1e-6,
        },
        "objective.gamma=0.1,optimizer.learning_rate=3e-06": {"objective.gamma": 0.1, "optimizer.learning_rate": 3e-6},
    }
    with pytest.raises(
        UserError, match="zip_ needs as many values of each key, got objective.gamma 2, seed 3; use product"
    ):
        zip_({"objective.gamma": (0.01, 0.1), "seed": (0, 1, 2)})


def test_named_points_cross_others_and_the_second_wins():
    found = cross(points(grpo={"refine.kind": "none", "seed": 9}, full={}), product({"seed": (0, 1)}))
    assert list(found) == ["grpo,seed=0", "grpo,seed=1", "full,seed=0", "full,seed=1"]
    assert found["grpo,seed=1"] == {"refine.kind": "none", "seed": 1}


def test_names_can_be_folders_and_are_told_apart():
    assert list(product({"eval.k": ((1, 8),), "data.train": ("a/b c",)})) == ["eval.k=_1_8_,data.train=a_b_c"]
    with pytest.raises(UserError, match="the sweep has the point data.train=a_b twice; leave one out, or give both"):
        product({"data.train": ("a/b", "a b")})


# --- the sweep ----------------------------------------------------------------------------------------------------


def test_the_committed_sweep_has_four_points_on_the_quickstart(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    found = sweep_lib.plan(sweep_lib.load("configs/sweeps/quickstart.py"), tmp_path)
    assert [point.name for point in found] == NAMES
    assert {(point.config["objective"]["gamma"], point.config["objective"]["aggregate"]) for point in found} == {
        (gamma, how) for gamma in (0.01, 0.1) for how in ("constant", "paper")
    }
    assert all(point.config["model"]["embed_dim"] == 192 for point in found)


def test_a_sweep_runs_its_points_and_collects_one_table(start, tmp_path, capsys):
    assert start() == (NAMES, False)
    table = (tmp_path / "runs/table.md").read_text()
    assert table.splitlines()[0] == (
        "| point | pass@1 before | pass@1 | pass@8 | unsolved then solved | tokens generated (k) |"
    )
    assert (
        "| objective.gamma=0.1,objective.aggregate=paper | 0.250 | 0.100 |  | 0.125 | 2 |" in table
        and "4 of 4 points done." in table
    )
    assert capsys.readouterr().out.endswith(table)
    results = json.loads((tmp_path / "runs/results.json").read_text())
    assert [result["point"] for result in results] == NAMES
    assert results[1]["overrides"] == {"objective.gamma": 0.01, "objective.aggregate": "paper"}
    assert results[1]["summary"]["num_tokens"] == 2000


def test_every_point_has_a_log_of_its_own(start, tmp_path):
    start()
    for name in NAMES:
        assert (tmp_path / "runs" / f"{name}.log").read_text() == f"log of {name}\n"


def test_an_interrupted_sweep_resumes_the_half_done_point_and_leaves_the_finished_ones(start, tmp_path):
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # as `python launch/sweep.py` has it
    try:
        with pytest.raises(KeyboardInterrupt):
            start(half=NAMES[1])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not (tmp_path / "runs" / NAMES[1] / "summary.json").exists()
    assert start() == ([f"{NAMES[1]} resumed", *NAMES[2:]], False)
    assert start() == ([], False)


def test_a_failing_point_is_named_and_the_others_go_on(start, tmp_path, capsys):
    assert start(bad=NAMES[0]) == (NAMES, True)
    out = capsys.readouterr().out
    assert f"{NAMES[0]}: failed with exit code 1: error: no luck (see {tmp_path}/runs/{NAMES[0]}.log)" in out
    assert "3 of 4 points done." in out and out.endswith(f"1 points failed: {NAMES[0]}\n")
    assert start() == ([NAMES[0]], False)


def test_a_new_point_joins_a_sweep_that_is_done(start):
    start()
    assert start(axes=FOUR | {"objective.gamma": (0.01, 0.1, 0.2)})[0] == [
        name.replace("0.1", "0.2") for name in NAMES[2:]
    ]


def test_a_dry_run_says_what_would_start_and_starts_nothing(start, tmp_path, capsys):
    assert start(dry_run=True) == ([], False) and not (tmp_path / "runs").exists()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{NAMES[0]}: new"
    assert lines[1].endswith(
        f"--workdir={tmp_path}/runs/{NAMES[0]} --config.objective.gamma=0.01 --config.objective.aggregate=constant"
    )
    start()
    (tmp_path / "runs" / NAMES[2] / "summary.json").unlink()
    capsys.readouterr()
    start(dry_run=True)
    states = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert states == [f"{n}: {state}" for n, state in zip(NAMES, ["done", "done", "resumes", "done"], strict=True)]


def test_only_runs_some_points(start):
    assert start(only="objective.gamma=0.1,") == (NAMES[2:], False)
    assert start() == (NAMES[:2], False)


def test_a_name_of_any_length_has_a_folder(start, tmp_path, capsys):
    value = "x" * 600
    names = [f"prompts.system={value},seed={seed}" for seed in (0, 1)]
    assert [len(sweep_lib.folder_name(name)) for name in names] == [200, 200]
    started, failed = start({"prompts.system": (value,), "seed": (0, 1)})
    assert started == [sweep_lib.folder_name(name) for name in names] and not failed
    assert all(name in (tmp_path / "runs" / "table.md").read_text() for name in names)
    assert start({"prompts.system": (value,), "seed": (0, 1)}) == ([], False)


@pytest.mark.parametrize(
    "names, message",
    [
        (("a", "a.log"), "point a.log: its a.log is that of point a"),
        (("a.log", "a"), "point a: its a.log is that of point a.log"),
        (("pods",), "point pods: its pods is that of the sweep itself; give the point another name"),
    ],
)
def test_points_have_folders_of_their_own(tmp_path, names, message):
    (tmp_path / "config.py").write_text(CONFIG)
    sweep = {"config": str(tmp_path / "config.py"), "points": {name: {} for name in names}}
    with pytest.raises(UserError, match=message):
        sweep_lib.plan(sweep, tmp_path)


def test_a_second_sweep_in_a_folder_is_refused(start, tmp_path, monkeypatch):
    ended = []
    with monkeypatch.context() as patch, runner.locked(tmp_path / "runs"):
        patch.setattr(sweep_lib.subprocess, "run", lambda *args, **_: ended.append(args))
        patch.setattr(sweep_lib, "check_slots", lambda *_: None)
        for more in ({}, {"slices": "a", "command": POD}):
            with pytest.raises(UserError, match="another sweep or study works in .*runs; wait for it to end, or give"):
                start(**more)
    assert not ended  # the first one's slice stays
    assert start() == (NAMES, False)


# Does the same to a folder in a bucket, and is then in the way of the sweep where a file says so.
BUCKET_STAND_IN = """
import json, os, pathlib, sys, urllib.request
here = pathlib.Path(__file__).parent
folder = next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2]
name = os.path.basename(folder)
with (here / "started").open("a") as file:
    file.write(name + chr(10))
print("log of", name)
def put(path, data):
    url = os.environ["STORAGE_EMULATOR_HOST"] + "/upload/storage/v1/b/mine/o?uploadType=media&name=" + path
    urllib.request.urlopen(urllib.request.Request(url, json.dumps(data).encode(), method="POST")).read()
config = json.loads((here / "expected.json").read_text())[name]
where = folder.removeprefix("gs://mine/")
put(where + "/config.json", config)
results = {"eval_before": {"pass@1": 0.0}, "eval_after": {"pass@1": config["objective"]["gamma"]}, "iterations": 6}
put(where + "/summary.json", results)
if (here / "bad").exists():
    put("runs/.writer", {"host": "other", "process": 7, "token": "another"})
"""


def test_a_sweep_in_a_bucket_is_one_on_a_disk(start, bucket, tmp_path, monkeypatch, capsys):  # noqa: F811
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "bench" / "stand_in.py").write_text(BUCKET_STAND_IN)
    two = {"objective.gamma": (0.01, 0.1)}
    names = [f"objective.gamma={gamma}" for gamma in (0.01, 0.1)]
    with pytest.raises(UserError, match="gs://mine/runs is written by process 7 on other now, which began after"):
        start(two, bad="a later sweep has begun", workdir="gs://mine/runs")  # the second point is left to it
    assert start(two, workdir="gs://mine/runs") == (names[1:], False)
    assert start(two, workdir="gs://mine/runs") == ([], False)
    assert "2 of 2 points done." in capsys.readouterr().out and b"| 0.100 |" in bucket.read("mine", "runs/table.md")
    assert [bucket.read("mine", f"runs/{name}.log").decode() for name in names] == [
        f"log of {name}\n" for name in names
    ]
    lines = bucket.read("mine", "runs/processes.jsonl").decode().splitlines()
    assert [json.loads(line)["run"] for line in lines] == names
    assert not (tmp_path / "runs").exists() and not pathlib.Path("gs:").exists()


# --- slices -------------------------------------------------------------------------------------------------------


POD = ["--topology=v6e:4x4", "--zone=us-east5-b", "--project=my-project"]


def mounted(folder):
    """Returns flags of a slice whose hosts see a test's folder."""
    return [*POD, f"--mount=10.0.0.2:/share={folder}"]


def test_each_slice_takes_a_point_at_a_time_and_is_deleted_at_the_end(start, tmp_path, monkeypatch, capsys):
    # Stands in for tpu_pod.py: records its arguments, and trains with what follows `--`.
    pod = tmp_path / "pod.py"
    pod.write_text(
        "import json, pathlib, subprocess, sys\n"
        "with (pathlib.Path(__file__).parent / 'pods').open('a') as file:\n"
        "    file.write(json.dumps(sys.argv[1:]) + chr(10))\n"
        "at = sys.argv.index('--') if '--' in sys.argv else None\n"
        "if at is not None:\n"
        f"    command = [{sys.executable!r}, '-S', {str(tmp_path / 'bench/stand_in.py')!r}, *sys.argv[at + 4:]]\n"
        "    sys.exit(subprocess.run(command).returncode)\n"
    )
    monkeypatch.setattr(sweep_lib, "TPU_POD", (sys.executable, str(pod)))
    assert start() == (NAMES, False)
    for name in NAMES:
        (tmp_path / "runs" / name / "summary.json").unlink()
    flags = mounted(tmp_path)
    started, failed = start(slices="a,b", command=flags)
    assert sorted(started) == sorted(f"{name} resumed" for name in NAMES) and not failed
    calls = [json.loads(line) for line in (tmp_path / "pods").read_text().splitlines()]
    runs, ends = calls[:4], calls[4:]
    assert {call[0] for call in runs} == {"--name=a", "--name=b"}
    for call in runs:
        at = call.index("--")
        logs = f"--logs={tmp_path}/runs/pods/{call[0].removeprefix('--name=')}"
        assert call[1:at] == [logs, "--keep", *flags] and call[at + 1 : at + 4] == ["python", "-m", "cgrpo_jax.train"]
    assert ends == [[f"--name={name}", "--delete", *flags] for name in "ab"]
    start(slices="a", command=[*flags, "--keep"])
    assert len((tmp_path / "pods").read_text().splitlines()) == 6  # all was done, and the slice is kept
    assert "4 of 4 points done." in capsys.readouterr().out


def test_the_command_of_a_slice_is_tpu_pod_s(start, tmp_path, capsys):
    start(slices="a,b", command=mounted(tmp_path), dry_run=True)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(" ")]
    pattern = (
        rf"tpu_pod.py --name=(\w) --logs={tmp_path}/runs/pods/(\w) --keep {' '.join(mounted(tmp_path))} -- python -m"
    )
    assert [re.search(pattern, line).groups() for line in lines] == [("a", "a"), ("b", "b")] * 2
    assert sweep_lib.TPU_POD[0] == sys.executable and pathlib.Path(sweep_lib.TPU_POD[1]).is_file()
    assert runner.TRAIN[1:] == ("-m", "cgrpo_jax.train")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slices": "a,My_B"}, "--name=My_B can't name a slice"),
        ({"slices": "a,b", "command": ["--topology=v6e:9x8", *POD[1:]]}, "v6e has no topology '9x8'"),
        ({"command": POD[:2]}, "missing --project"),
        ({"command": [*POD, "--max-restart=1"]}, r"unknown flag --max-restart \(did you mean --max-restarts"),
        ({"command": [*POD, "--delete"]}, "--delete runs no command"),
        ({"command": ["--topology=v6e:4x4", "--zone=us-east5", POD[2]]}, "--zone=us-east5 is a region"),
        ({"axes": {"mesh.tensor": (1, 3)}}, "tensor 3 takes 15 devices, there are 16"),
        ({"workdir": "/home/me/runs"}, "--workdir=/home/me/runs/objective.gamma=0.01,.* would go with the slice"),
    ],
)
def test_a_sweep_on_slices_refuses_what_tpu_pod_refuses(start, tmp_path, changes, message):
    if "workdir" not in changes:
        changes = changes | {"command": [*changes.get("command", POD), f"--mount=10.0.0.2:/share={tmp_path}"]}
    for dry_run in (True, False):
        with pytest.raises(UserError, match=message):
            start(**{"slices": "a", "command": POD, "dry_run": dry_run} | changes)
    assert (tmp_path / "bench/started").read_text() == "" and not (tmp_path / "runs").exists()


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "flags", "message"),
    [
        ({"gama": (1, 2)}, {"only": ""}, r"unknown config key --config.gama \(did you mean --config.objective.gamma"),
        ({"objective.gamma": (0.1, "big")}, {"only": ""}, "--config.objective.gamma=big is not a number"),
        (
            {"objective.aggregate": ("paper", "papre")},
            {"dry_run": True},
            "point objective.aggregate=papre: objective.aggregate 'papre' is unknown; use one of",
        ),
        (FOUR, {"jobs": 0}, "--jobs=0 runs nothing"),
        (FOUR, {"only": "["}, r"--only=\[ is not a regular expression"),
        (
            FOUR,
            {"only": "nothing"},
            "--only=nothing matches no point; the first is objective.gamma=0.01,objective.aggregate=constant",
        ),
        (FOUR, {"command": ["--zone=z"]}, "flags after -- are those of the slices; give --slices=NAME,NAME too"),
        (FOUR, {"slices": "a,b,a"}, "--slices=a,b,a names a twice; a slice takes one point at a time"),
        (FOUR, {"slices": "a", "command": ["--logs=x"]}, "--logs=x after -- is set for each slice"),
        (FOUR, {"slices": "a", "command": ["--name", "x"]}, "--name after -- is set for each slice"),
        (FOUR, {"slices": "a", "workdir": "runs"}, "--workdir=runs is not shared with the slices; give the absolute"),
    ],
)
def test_a_mistake_is_one_line_and_runs_nothing(start, tmp_path, axes, flags, message):
    with pytest.raises(UserError, match=message):
        start(axes=axes, **flags)
    assert (tmp_path / "bench/started").read_text() == "" and not (tmp_path / "runs").exists()


def test_a_sweep_file_that_can_not_be_used_is_named(tmp_path):
    path = tmp_path / "sweep.py"
    with pytest.raises(UserError, match="sweep.py does not exist; give one like configs/sweeps/quickstart.py"):
        sweep_lib.load(str(path))
    for text, message in [
        ("x = 1", "it lacks 'get_sweep'"),
        ("1 / 0", "ZeroDivisionError"),
        ("def get_sweep():\n    return {'config': ''}", "it lacks 'points in get_sweep"),
        ("def get_sweep():\n    return {'config': '', 'points': {}}", "has no points"),
        ("def get_sweep():\n    return []", r"get_sweep\(\) is \[\], not a dict of `config` and `points`"),
        ("def get_sweep():\n    return {'config': 1, 'points': {}}", "config is 1, not a path"),
        ("def get_sweep():\n    return {'config': '', 'points': ['a']}", r"points is \['a'\], not a dict from names"),
        ("def get_sweep():\n    return {'config': '', 'points': {1: {}}}", "a point's name is 1, not a string"),
        (
            "def get_sweep():\n    return {'config': '', 'points': {'a': None}}",
            "point 'a''s overrides is None, not a dict",
        ),
        ("def get_sweep():\n    return {'config': '', 'points': {'a': ['x']}}", r"overrides is \['x'\], not a dict"),
        ("def get_sweep():\n    return {'config': '', 'points': {'a': {1: 2}}}", "a key of point 'a''s overrides is 1"),
        ("from points import zip_\nzip_({'a': (1,), 'b': ()})", "zip_ needs as many values of each key, got a 1, b 0"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            sweep_lib.load(str(path))
    (tmp_path / "config.py").write_text(CONFIG)
    sweep = {"config": str(tmp_path / "config.py"), "points": {"../up": {}}}
    with pytest.raises(UserError, match=r"point '../up' can't name a folder; use letters, digits"):
        sweep_lib.plan(sweep, tmp_path)


def test_a_point_with_a_key_that_training_would_refuse_is_refused_first(tmp_path):
    (tmp_path / "config.py").write_text(CONFIG)
    points_of = {"grpo": {"refine.kind": "none", "refine.num_kept": 2}}
    with pytest.raises(UserError, match="^point grpo: refine.num_kept 2 changes nothing while refine.kind is 'none'"):
        sweep_lib.plan({"config": str(tmp_path / "config.py"), "points": points_of}, tmp_path / "runs")
