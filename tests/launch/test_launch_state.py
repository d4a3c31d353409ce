"""tpu_pod.py on a cloud that keeps state: what a fresh slice has, and what it has after a preemption."""

import json
import stat
import sys

import fake_cloud
import paths
import pytest

from cgrpo_jax.errors import UserError

sys.path.insert(0, str(paths.ROOT / "launch"))  # as `python launch/tpu_pod.py` has it
import tpu_pod  # noqa: E402

bucket = pytest.importorskip("cgrpo_jax.runtime.bucket")

EXPORT = "10.0.0.2:/share"
TRAIN = ["python", "-m", "cgrpo_jax.train", "--config=configs/quickstart.py"]


@pytest.fixture
def cloud(tmp_path, monkeypatch):
    made = fake_cloud.FakeCloud(tmp_path / "cloud")
    made.make()
    monkeypatch.setenv("PATH", str(made.path))
    (made.folder / "exports" / EXPORT.replace(":", "_").replace("/", "_")).mkdir()
    return made


def launch(cloud, tmp_path, **changes):
    values = {
        "name": "pod", "topology": "v6e:4x4", "zone": "us-east5-b", "project": "my-project", "spot": True,
        "runtime_version": "", "network": "", "subnetwork": "", "service_account": "", "mount": "", "env": "",
        "logs": str(tmp_path / "logs"), "max_restarts": 2, "poll": 0.0, "keep": True, "delete": False,
        "dry_run": False, "command": ["job", "--workdir=gs://mine/run"],
    }  # fmt: skip
    try:
        tpu_pod.main(**values | changes)
    except SystemExit as stop:
        return stop.code
    return 0  # a dry run, which starts nothing


def change(cloud, **changes):
    cloud.write(cloud.read() | changes)


def test_a_disk_is_mounted_on_a_fresh_slice_and_after_a_preemption(cloud, tmp_path):
    change(cloud, preempted_runs=1)
    command = ["job", "--workdir=/mnt/shared/run"]
    assert launch(cloud, tmp_path, mount=f"{EXPORT}=/mnt/shared", command=command) == 0
    assert cloud.read()["made"] == 2  # so the disks of the first slice are gone, and its mounts
    (export,) = (cloud.folder / "exports").iterdir()
    assert (export / "runs").read_text() == "run\n" * 4  # both hosts, before the preemption and after it
    for host in range(2):
        assert (cloud.host(host) / "mounts").read_text() == f"{EXPORT} /mnt/shared\n"
        assert (cloud.host(host) / "commands").read_text() == "--workdir=/mnt/shared/run --distributed\n"


def test_a_disk_that_is_mounted_is_not_mounted_again(cloud, tmp_path):
    change(cloud, slice="ACTIVE")
    for number in range(2):
        (cloud.host(number) / "home").mkdir(parents=True)
    for _ in range(2):
        command = ["job", "--workdir=/mnt/shared/run"]
        assert launch(cloud, tmp_path, mount=f"{EXPORT}=/mnt/shared", command=command) == 0
    assert (cloud.host(0) / "mounts").read_text() == f"{EXPORT} /mnt/shared\n"


def test_secrets_reach_every_host_and_are_printed_nowhere(cloud, tmp_path, monkeypatch, capfd):
    secret = "hf_'$(touch bad)\"\nend"
    monkeypatch.setenv("HF_TOKEN", secret)
    change(cloud, preempted_runs=1, buckets={"mine": []})
    (cloud.folder / "on_host" / "job").write_text('#!/bin/bash\nprintf %s "$HF_TOKEN$MODE" > "$HOST_DISK/token"\n')
    assert launch(cloud, tmp_path, env="HF_TOKEN,MODE=fast") == 0
    for number in range(2):
        assert (cloud.host(number) / "token").read_text() == f"{secret}fast"
        left = cloud.host(number) / "home" / "cgrpo.env"
        assert stat.S_IMODE(left.stat().st_mode) == 0o600
    logs = "".join(path.read_text() for path in (tmp_path / "logs").rglob("*") if path.is_file())
    assert "hf_" not in json.dumps(cloud.read()["calls"]) + "".join(capfd.readouterr()) + logs
    # The next launch on that slice, which asks for none, has none.
    assert launch(cloud, tmp_path) == 0
    assert (cloud.host(0) / "token").read_text() == ""


def test_a_dry_run_names_variables_and_shows_none(cloud, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    assert launch(cloud, tmp_path, env="HF_TOKEN", dry_run=True) == 0
    out = capsys.readouterr().out
    assert "scp cgrpo.env pod:cgrpo.env" in out and "gcloud storage ls gs://mine\n" in out and "hf_secret" not in out
    assert cloud.read()["calls"] == []


def test_a_dry_run_looks_into_no_bucket_and_takes_several_rewards(cloud, tmp_path, monkeypatch, capsys):
    def is_file(path):
        raise AssertionError(f"{path} was looked at")

    monkeypatch.setattr(bucket.BucketPath, "is_file", is_file)
    command = [*TRAIN, "--workdir=gs://mine/run", "--config.rewards=trace,math"]
    assert launch(cloud, tmp_path, command=command, dry_run=True) == 0
    assert "--config.rewards=trace,math" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["job", "--workdir=gs://none/run"], "--workdir: gs://none is not there, .*storage buckets create gs://none"),
        (
            [*TRAIN, "--workdir=gs://mine/run", "--config.model.init=gs://mine/models/none"],
            "--config.model.init: gs://mine/models/none is not there.*copy it there",
        ),
        (
            ["python", "-m", "cgrpo_jax.convert", "--from_hf=gs://mine/models/none", "--to=gs://mine/converted"],
            "--from_hf: gs://mine/models/none is not there",
        ),
        (
            ["python", "-m", "cgrpo_jax.evaluate", "--workdir=gs://mine/no_run"],
            "--workdir: gs://mine/no_run/config.json is not there",
        ),
    ],
)
def test_what_is_not_in_a_bucket_is_refused_before_a_slice_is_made(cloud, tmp_path, command, message):
    change(cloud, buckets={"mine": ["models/tiny/config.json", "runs/a/config.json"]})
    with pytest.raises(UserError, match=message) as caught:
        launch(cloud, tmp_path, command=command)
    assert "\n" not in str(caught.value) and cloud.read()["made"] == 0


def test_what_is_in_a_bucket_is_taken(cloud, tmp_path, monkeypatch):
    change(cloud, buckets={"mine": ["models/tiny/config.json", "runs/a/config.json"]})
    (cloud.folder / "on_host" / "python").write_text('#!/bin/bash\necho "$@" > "$HOST_DISK/commands"\n')
    (cloud.folder / "on_host" / "python").chmod(0o755)
    for command in (
        ["python", "-m", "cgrpo_jax.evaluate", "--workdir=gs://mine/runs/a"],
        ["python", "-m", "cgrpo_jax.convert", "--from_hf=gs://mine/models/tiny", "--to=gs://mine/converted"],
    ):
        assert launch(cloud, tmp_path, command=command) == 0
        assert (cloud.host(1) / "commands").read_text() == " ".join([*command[1:], "--distributed"]) + "\n"
