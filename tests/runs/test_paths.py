"""Where what is given lies: `~` is expanded, and storage that can't be had is refused before anything starts."""

import json
import os

import pytest
from bucket_fixtures import bucket  # noqa: F401 - a fixture
from config_files import derived, write_configs

from cgrpo_jax import convert, evaluate
from cgrpo_jax.errors import UserError
from cgrpo_jax.evaluation.resumable_results import Results
from cgrpo_jax.runs import cli, model_source, validate
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import places

RUN = {"config": cli.CONFIG, "workdir": cli.WORKDIR}


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return write_configs(tmp_path / "project", own=derived("config.data.train = '~/a.jsonl,~/b.jsonl'")) / "own.py"


# --- what is given ------------------------------------------------------------------------------------------------


def test_each_of_several_paths_is_expanded_or_refused():
    config = config_lib.replaced(config_lib.Config(), {"rewards": ("math", "~/style.py:short")})
    assert config.rewards == ("math", os.path.expanduser("~/style.py:short"))
    assert places.faults(("math", "s3://mine/style.py")) == places.fault("s3://mine/style.py")


def test_home_is_expanded_wherever_a_path_is_given(file, tmp_path):
    given = cli.parse(
        ["--config=~/project/configs/own.py", "--workdir=~/runs/a", "--config.model.folder=~/models/b"], flags=RUN
    )
    config = given["config"]
    assert given["workdir"] == f"{tmp_path}/runs/a" and config.model.folder == f"{tmp_path}/models/b"
    assert config.data.train == f"{tmp_path}/a.jsonl,{tmp_path}/b.jsonl"
    given = cli.parse(["--from_hf=~/a", "--to=gs://mine/b"], flags=convert.FLAGS)
    assert (given["from_hf"], given["to"]) == (f"{tmp_path}/a", "gs://mine/b")
    assert cli.parse(["--out=~/o"], flags=evaluate.FLAGS)["out"] == f"{tmp_path}/o"


def test_a_run_is_found_by_its_path_alone(file, tmp_path, bucket):  # noqa: F811
    text = json.dumps(config_lib.to_json(Config()))
    for folder, given in ((tmp_path / "runs" / "a", "~/runs/a"), (places.place("gs://mine/a"), "gs://mine/a")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(text)
        found = cli.parse([given], flags=RUN, require=("config", "workdir"))
        assert found["workdir"] == str(folder) and found["config"] == Config()


@pytest.mark.parametrize(
    "argument",
    ["--workdir=s3://mine/a", "--workdir=hdfs://mine/a", "--workdir=https://mine/a", "s3://mine/a", "--workdir=gs://"],
)
def test_other_storage_is_refused_on_the_command_line(file, argument):
    with pytest.raises(UserError, match="which is not supported; give a path on a disk, or gs://|names no bucket"):
        cli.parse([f"--config={file}", argument] if argument.startswith("-") else [argument], flags=RUN)


def test_what_must_lie_on_a_disk_is_refused_in_a_bucket():
    with pytest.raises(UserError, match="--config gs://mine/a.py is in a bucket; give a path on a disk"):
        cli.parse(["--config=gs://mine/a.py", "--workdir=a"], flags=RUN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.folder": "s3://mine/a"}, "model.folder: s3://mine/a is on s3://, which is not supported"),
        ({"data.train": "a.jsonl,http://x/b.jsonl"}, "data.train: http://x/b.jsonl is on http://"),
        ({"grader.kind": "gs://mine/f.py:f"}, "grader.kind gs://mine/f.py:f is in a bucket; a function is read from a"),
        ({"critic.kind": "folder", "critic.folder": "gs:///a"}, "critic.folder: gs:///a names no bucket"),
    ],
)
def test_other_storage_is_refused_in_a_configuration(changes, message):
    with pytest.raises(UserError, match=message):
        validate.check(config_lib.replaced(Config(), changes))


def test_a_file_in_the_place_of_a_folder_is_refused(tmp_path, bucket):  # noqa: F811
    for place in (tmp_path / "file", places.place("gs://mine/file")):
        place.write_text("{}")
        for key in ("model.folder", "model.init"):
            config = config_lib.replaced(Config(), {key: str(place)})
            with pytest.raises(UserError, match=f"{key} {place} is a file; give|model.init {place} does not exist"):
                model_source.check_places(config)
        with pytest.raises(UserError, match="can't be written .*File exists.*; give another --workdir"):
            with RunDir(place).locked():
                pass


def test_a_file_in_the_place_of_a_folder_is_refused_on_the_command_line(tmp_path, file):
    """Before anything is read, and so also where the model takes minutes to load."""
    taken = tmp_path / "taken"
    taken.write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nothing")
    for given in (taken, taken / "a" / "b", tmp_path / "dangling"):
        with pytest.raises(UserError, match=f"--workdir {given} can't be a folder, since {tmp_path}/[a-z]+ is none"):
            cli.parse([f"--config={file}", f"--workdir={given}"], flags=RUN)
    for given in (tmp_path, tmp_path / "new" / "er"):
        assert cli.parse([f"--config={file}", f"--workdir={given}"], flags=RUN)["workdir"] == str(given)
    with places.elsewhere():
        assert cli.parse([f"--config={file}", f"--workdir={taken}"], flags=RUN)["workdir"] == str(taken)


# --- a run's folder in a bucket -----------------------------------------------------------------------------------


@pytest.fixture(params=["disk", "bucket"])
def run(request, tmp_path, bucket):  # noqa: F811
    path = tmp_path / "run" if request.param == "disk" else places.place("gs://mine/run")
    made = RunDir(path)
    with made.locked():
        assert made.open({"seed": 1}) is False and made.open({"seed": 1}) is True
        yield made


def test_a_log_grows_and_is_cut_back(run):
    for step in range(4):
        run.append_metrics({"step": step, "reward": 0.5})
        run.rollouts.mkdir(exist_ok=True)
        (run.rollouts / f"step_{step:08d}.parquet").write_bytes(b"rows")
    assert run.drop_after(2, expected=2) == []
    assert [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()] == [0, 1, 2]
    assert [path.name for path in sorted(run.rollouts.iterdir())] == [f"step_{k:08d}.parquet" for k in range(3)]
    aside = run.drop_after(0, expected=1)  # more than a killed run loses
    assert len(aside) == 2 and all((run.path / name).exists() for name in aside)
    assert len((run.path / aside[0]).read_text().splitlines()) == 3
    assert sorted(path.name for path in (run.path / aside[1]).iterdir()) == [
        "step_00000001.parquet",
        "step_00000002.parquet",
    ]
    assert [path.name for path in run.rollouts.iterdir()] == ["step_00000000.parquet"]


def test_in_a_bucket_the_run_that_began_last_goes_on(bucket):  # noqa: F811
    first, second = RunDir("gs://mine/run"), RunDir("gs://mine/run")
    with first.locked():
        first.open({"seed": 1})
        first.append_metrics({"step": 0})
        with second.locked():
            second.append_metrics({"step": 1})
            for write in (lambda: first.append_metrics({"step": 1}), lambda: first.write_summary({})):
                with pytest.raises(UserError, match="gs://mine/run is written by process .* this one ends"):
                    write()
            second.append_metrics({"step": 2})
    assert len(first.metrics.read_text().splitlines()) == 3


def test_results_grow_and_resume(run):
    results = Results(run.path / "evaluation")
    about = {"started": "2026-01-01T00:00:00", "config": {"seed": 1}}
    lines = [{"number": number, "ungraded": 0} for number in range(5)]
    with results.open(about):
        for line in lines:
            results.append("samples", [line])
    with results.open(about):
        assert results.started() == about["started"]
        assert results.resume("samples", size=2, numbers=list(range(6))) == 4
        assert list(results.lines("samples")) == lines[:4]
    with pytest.raises(UserError, match="holds results of something else"), results.open(about | {"config": {}}):
        pass
