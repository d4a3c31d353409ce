"""tpu_pod.py against a stand-in for gcloud that records what it is asked and answers as a test says."""

import json
import os
import shlex
import shutil
import subprocess
import sys
import tarfile

import paths
import patience
import pytest

from cgrpo_jax import collect, diagnose, evaluate, finetune, sample
from cgrpo_jax.errors import UserError

ROOT = paths.ROOT

sys.path.insert(0, str(ROOT / "launch"))  # as `python launch/tpu_pod.py` has it
import command_line  # noqa: E402
import on_hosts  # noqa: E402
import preflight  # noqa: E402
import tpu_pod  # noqa: E402

# Answers with the next line of answers.json[WORD], WORD being the first argument that is a key; the last one stays.
GCLOUD = """#!{python} -S
import json, pathlib, shutil, sys
here = pathlib.Path({here!r})
with (here / "calls.jsonl").open("a") as file:
    file.write(json.dumps(sys.argv[1:]) + chr(10))
answers = json.loads((here / "answers.json").read_text())
kind = "run" if any(a.startswith("--output-directory") for a in sys.argv) else None
for argument in sys.argv:
    if argument.endswith(".tar.gz") and ":" not in argument:
        shutil.copy(argument, here / "shipped.tar.gz")
word = kind or next((f"{{a}} {{b}}" for a, b in zip(sys.argv, sys.argv[1:]) if f"{{a}} {{b}}" in answers), None)
if word not in answers:
    sys.exit(0)
given = answers[word]
out, status = given[0]
answers[word] = given[1:] or given
(here / "answers.json").write_text(json.dumps(answers))
print(out, file=sys.stderr if status else sys.stdout)
sys.exit(status)
"""
NOT_FOUND = ["ERROR: (gcloud.describe) NOT_FOUND: Resource 'pod' was not found", 1]
OFFLINE = ["ERROR: gcloud crashed (TransportError): no route to host", 1]
QR, NODE = "queued-resources describe", "tpu-vm describe"
TRAIN = ["python", "-m", "cgrpo_jax.train"]
CONFIG, WORKDIR = "--config=configs/quickstart.py", "--workdir=/mnt/shared/run"
OWN_DATA = [CONFIG, WORKDIR, "--config.data.kind=jsonl", "--config.warm_start.num_updates=0"]
OWN_DATA += ["--config.critique.step_checker=equations"]
COMMAND = [*TRAIN, CONFIG, WORKDIR, "--config.prompts.system=it's $HOME"]


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Returns a function that launches with gcloud's answers, and returns the exit status and what gcloud was asked."""
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.parent.mkdir()
    gcloud.write_text(GCLOUD.format(python=sys.executable, here=str(tmp_path)))
    gcloud.chmod(0o755)
    # Nothing else is on the path: no test may ever reach a real gcloud.
    (gcloud.parent / "git").symlink_to(shutil.which("git"))
    monkeypatch.setenv("PATH", str(gcloud.parent))
    monkeypatch.setenv("HF_TOKEN", "hf_secret")

    def launch(answers, **changes):
        (tmp_path / "answers.json").write_text(json.dumps(answers))
        (tmp_path / "calls.jsonl").write_text("")
        values = {
            "name": "pod", "topology": "v6e:4x4", "zone": "us-east5-b", "project": "my-project", "spot": True,
            "runtime_version": "", "network": "", "subnetwork": "", "service_account": "", "env": "",
            "mount": "10.0.0.2:/share=/mnt/shared",
            "logs": str(tmp_path / "logs"), "max_restarts": 2, "poll": 0.0, "keep": False, "delete": False,
            "dry_run": False, "command": COMMAND,
        }  # fmt: skip
        status = None
        try:
            tpu_pod.main(**values | changes)
        except SystemExit as stop:
            status = stop.code
        return status, calls()

    def calls():
        return [json.loads(line) for line in (tmp_path / "calls.jsonl").read_text().splitlines()]

    launch.calls = calls
    return launch


def kinds(calls):
    """Returns what was asked, in order, without the looks at the state."""
    found = []
    for call in calls:
        verb = call[3]
        if verb == "ssh":
            verb = "run" if any(argument.startswith("--output-directory") for argument in call) else "install"
        found.append(verb)
    return [verb for verb in found if verb != "describe"]


FOUND = {"run": [["", 0]], NODE: [["READY", 0]]}
NEW = FOUND | {QR: [NOT_FOUND, ["WAITING_FOR_RESOURCES", 0], ["PROVISIONING", 0], ["ACTIVE", 0]]}


def test_a_dry_run_prints_the_commands_that_a_run_then_gives(launch, capsys, tmp_path):
    status, calls = launch({}, dry_run=True)
    assert status is None and calls == [] and not (tmp_path / "logs").exists()
    shown = shlex.split(capsys.readouterr().out)
    commands = [list(part) for part in split_at(shown, {"git", "gcloud"})]
    assert [command[0] for command in commands] == ["git"] + ["gcloud"] * 6
    status, calls = launch(NEW)
    assert status == 0
    asked = [call for number, call in enumerate(calls) if call not in calls[:number]]
    expected = [[argument.replace("cgrpo_jax.tar.gz", "X") for argument in command[1:]] for command in commands[1:]]
    really = [[name(argument) for argument in call] for call in asked]
    assert sorted(really) == sorted(expected)


def name(argument):
    """Returns an argument with the archive's temporary path, or its name on the host, as X."""
    if argument.endswith("/cgrpo_jax.tar.gz"):
        return "X"
    return argument.replace("cgrpo_jax.tar.gz", "X")


def split_at(words, starts):
    part = []
    for word in words:
        if word in starts and part:
            yield part
            part = []
        part.append(word)
    yield part


def test_a_run_creates_waits_ships_installs_runs_and_deletes(launch, tmp_path, capsys):
    status, calls = launch(NEW)
    assert status == 0 and kinds(calls) == ["create", "scp", "install", "run", "delete"]
    create = next(call for call in calls if "create" in call)
    assert create == [
        "compute", "tpus", "queued-resources", "create", "pod", "--zone=us-east5-b", "--project=my-project",
        "--node-id=pod", "--accelerator-type=v6e-16", "--runtime-version=v2-alpha-tpuv6e", "--spot", "--quiet",
    ]  # fmt: skip
    (run,) = [call for call in calls if kinds([call]) == ["run"]]
    script = next(argument for argument in run if argument.startswith("--command="))
    assert shlex.split(script.splitlines()[-1]) == ["exec", *COMMAND, "--distributed"]
    assert "--worker=all" in run and f"--output-directory={tmp_path}/logs/attempt-0" in run
    out = capsys.readouterr().out
    assert "pod is WAITING_FOR_RESOURCES; waiting" in out and "running on 4 hosts" in out


def test_what_is_shipped_is_the_commit_and_no_secret_is_printed_or_sent(launch, tmp_path, capfd):
    _, calls = launch(NEW)
    assert "hf_secret" not in json.dumps(calls) + "".join(capfd.readouterr())
    listed = subprocess.run(["git", "-C", ROOT, "ls-tree", "-r", "--name-only", "HEAD"], capture_output=True, text=True)
    with tarfile.open(tmp_path / "shipped.tar.gz") as packed:
        files = {member.name for member in packed.getmembers() if not member.isdir()}
    assert files == set(listed.stdout.splitlines()) and "setup.py" in files


def test_what_the_hosts_run_stops_what_a_lost_attempt_left_and_starts_in_the_code(tmp_path):
    home = tmp_path / "home"
    (home / "cgrpo_jax").mkdir(parents=True)
    (home / "cgrpo_venv/bin").mkdir(parents=True)
    (home / "cgrpo_venv/bin/activate").write_text("")
    left = subprocess.Popen(["sleep", "60"])
    (home / "cgrpo.pid").write_text(str(left.pid))
    script = on_hosts.run_script(["pwd"])
    # The one who waits for the process here is this test: without it a zombie would stay, which `tail --pid` sees.
    with subprocess.Popen(["bash", "-c", script], env={"HOME": str(home), "PATH": "/usr/bin:/bin"}, stdout=-1) as shell:
        assert left.wait(timeout=patience.seconds(30)) == -15
        out, _ = shell.communicate(timeout=patience.seconds(30))
    assert out.decode().strip() == str(home / "cgrpo_jax")
    assert (home / "cgrpo.pid").read_text().strip() == str(shell.pid)


def test_what_has_the_number_of_a_process_that_ended_is_left_alone(tmp_path):
    home = tmp_path / "home"
    (home / "cgrpo_jax").mkdir(parents=True)
    (home / "cgrpo_venv/bin").mkdir(parents=True)
    (home / "cgrpo_venv/bin/activate").write_text("")
    with subprocess.Popen(["cat"], stdin=-1, stdout=-1) as other:
        (home / "cgrpo.pid").write_text(str(other.pid))
        os.utime(home / "cgrpo.pid", (1e9, 1e9))  # long before it began
        script = on_hosts.run_script(["pwd"])
        environment = {"HOME": str(home), "PATH": "/usr/bin:/bin"}
        done = subprocess.run(
            ["bash", "-c", script], env=environment, capture_output=True, timeout=patience.seconds(60)
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert other.communicate(b"alive")[0] == b"alive"


def test_a_preempted_slice_is_created_again_and_the_same_command_runs_again(launch, tmp_path, capsys):
    states = ["ACTIVE", "SUSPENDED", "SUSPENDED", "PROVISIONING", "ACTIVE"]
    answers = FOUND | {QR: [NOT_FOUND, *([state, 0] for state in states)], "run": [["", 255], ["", 0]]}
    status, calls = launch(answers)
    assert status == 0
    once = ["create", "scp", "install", "run"]
    assert kinds(calls) == [*once, "delete", *once, "delete"]
    first, second = [call for call in calls if kinds([call]) == ["run"]]
    changed = [(a, b) for a, b in zip(first, second, strict=True) if a != b]
    assert changed == [tuple(f"--output-directory={tmp_path}/logs/attempt-{k}" for k in (0, 1))]
    assert "preempted: creating it again (restart 1 of 2)" in capsys.readouterr().out


def test_a_node_that_is_preempted_counts_before_the_queued_resource_says_so(launch):
    answers = {QR: [["ACTIVE", 0]] * 3 + [["SUSPENDED", 0]] + [["ACTIVE", 0]], NODE: [["PREEMPTED", 0]]}
    status, calls = launch(answers | {"run": [["", 1], ["", 0]]})
    assert status == 0 and kinds(calls) == [
        "scp",
        "install",
        "run",
        "delete",
        "create",
        "scp",
        "install",
        "run",
        "delete",
    ]


def test_a_slice_lost_while_it_waits_or_is_set_up_is_created_again(launch):
    states = [NOT_FOUND, ["FAILED", 0], ["FAILED", 0], ["ACTIVE", 0]]
    status, calls = launch(FOUND | {QR: states})
    assert status == 0 and kinds(calls) == ["create", "delete", "create", "scp", "install", "run", "delete"]
    states = [["ACTIVE", 0]] * 2 + [["SUSPENDED", 0]] * 2 + [["ACTIVE", 0]]
    status, calls = launch(FOUND | {QR: states, "tpu-vm scp": [["", 1], ["", 0]]})
    assert status == 0 and kinds(calls) == ["scp", "delete", "create", "scp", "install", "run", "delete"]


def test_a_run_that_saved_before_its_slice_was_preempted_goes_on_on_a_new_one(launch, capsys):
    # The state shows the preemption after a while; without it, status 0 is the end.
    states = [["ACTIVE", 0]] * 3 + [["SUSPENDED", 0]] * 2 + [["ACTIVE", 0]]
    status, calls = launch(FOUND | {QR: states, "run": [["", 75], ["", 0]]})
    once = ["scp", "install", "run"]
    assert status == 0 and kinds(calls) == [*once, "delete", "create", *once, "delete"]
    assert "preempted: creating it again (restart 1 of 2)" in capsys.readouterr().out
    runs = [call for call in calls if kinds([call]) == ["run"]]
    script = next(argument for argument in runs[0] if argument.startswith("--command="))
    assert "export CGRPO_STOPPED_STATUS=75" in script.splitlines()


def test_a_run_that_sigterm_stopped_on_a_slice_that_stands_ends_the_launch(launch, capsys, tmp_path):
    status, calls = launch(FOUND | {QR: [["ACTIVE", 0]], "run": [["", 75]]})
    assert status == 75 and kinds(calls) == ["scp", "install", "run", "delete"]
    line = f"SIGTERM stopped the run, and the slice stands; the same command resumes it (see {tmp_path}/logs/attempt-0)"
    assert line in capsys.readouterr().out


def test_a_look_that_fails_says_nothing_about_the_slice(launch, capsys):
    states = [OFFLINE, ["ACTIVE", 0], ["ACTIVE", 0], OFFLINE, OFFLINE, ["ACTIVE", 0]]
    status, calls = launch(FOUND | {QR: states, "run": [["", 255], ["", 0]]})
    assert status == 0 and kinds(calls) == ["scp", "install", "run", "run", "delete"]
    out = capsys.readouterr().out
    assert "the connection was lost: running again (restart 1 of 2)" in out
    assert "gcloud can't give the state of pod (ERROR: gcloud crashed (TransportError): no route to host)" in out


@pytest.mark.parametrize("before", [[], [["WAITING_FOR_RESOURCES", 0]], [["ACTIVE", 0]] * 2])
def test_a_slice_that_gcloud_can_not_see_is_not_deleted(launch, before):
    with pytest.raises(UserError, match="no route to host.*may still stand.*queued-resources delete pod") as caught:
        launch(FOUND | {QR: [*before, OFFLINE], "run": [["", 255]]})
    assert "\n" not in str(caught.value)
    assert not {"create", "delete"} & set(kinds(launch.calls()))


def test_attempts_are_numbered_above_all_that_are_there(launch, tmp_path, capsys):
    for name in ("attempt-1", "attempt-9", "attempt-old"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    launch({}, dry_run=True)
    assert f"--output-directory={tmp_path}/logs/attempt-10" in capsys.readouterr().out
    status, calls = launch(FOUND | {QR: [["ACTIVE", 0]], "run": [["", 3]]})
    (run,) = [call for call in calls if kinds([call]) == ["run"]]
    assert status == 3 and f"--output-directory={tmp_path}/logs/attempt-10" in run
    assert f"status 3; see {tmp_path}/logs/attempt-10" in capsys.readouterr().out


def test_restarts_have_an_end(launch, capsys):
    status, calls = launch(FOUND | {QR: [["ACTIVE", 0]], "run": [["", 255]]})
    assert status == 255 and kinds(calls).count("run") == 3 and kinds(calls)[-1] == "delete"
    assert kinds(calls).count("install") == 1  # the slice was there all the time
    assert "connection lost after 2 restarts" in capsys.readouterr().out


def test_a_command_that_fails_is_not_run_again(launch, tmp_path, capsys):
    status, calls = launch(FOUND | {QR: [["ACTIVE", 0]], "run": [["", 2]]})
    assert status == 2 and kinds(calls) == ["scp", "install", "run", "delete"]
    assert f"the command failed with status 2; see {tmp_path}/logs/attempt-0" in capsys.readouterr().out


def test_keep_leaves_the_slice_and_delete_only_deletes(launch, capsys):
    status, calls = launch(FOUND | {QR: [["ACTIVE", 0]]}, keep=True)
    assert status == 0 and kinds(calls) == ["scp", "install", "run"]
    assert "pod is kept; delete it with --delete" in capsys.readouterr().out
    assert kinds(launch({}, delete=True, command=[])[1]) == ["delete"]
    assert launch({}, delete=True, dry_run=True, command=[])[1] == []
    assert capsys.readouterr().out == (
        "gcloud compute tpus queued-resources delete pod --zone=us-east5-b --project=my-project --force --quiet\n"
    )


def test_ctrl_c_deletes_the_slice(launch):
    def interrupted(attempts):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        launch({}, start=interrupted)
    assert kinds(launch.calls()) == ["delete"]


def test_networks_accounts_and_versions_are_handed_on(launch, capsys):
    launch({}, dry_run=True, spot=False, network="n", subnetwork="s", service_account="a", runtime_version="v9")
    create = capsys.readouterr().out.splitlines()[1]
    assert create.endswith("--runtime-version=v9 --network=n --subnetwork=s --service-account=a --quiet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logs": __file__}, "--logs=.* can't be written .*; give another --logs"),
        ({"topology": "v6e:5x5"}, "v6e has no topology '5x5'; it has 1x1"),
        ({"topology": "tpu7x:2x2x1"}, "tpu7x:2x2x1 is on GKE only; use launch/render_gke.py"),
        ({"delete": True}, "--delete runs no command; leave --delete or the command out"),
        ({"command": []}, "no command to run; write it after --"),
        ({"command": ["python", "--workdir=runs/a"]}, "--workdir=runs/a would go with the slice; give a path in a b"),
        ({"command": ["python", "--workdir", "runs/a"]}, "--workdir=runs/a would go with the slice; give a path"),
        ({"mount": ""}, "--workdir=/mnt/shared/run would go with the slice; .*gs://BUCKET/NAME, or one on a --mount"),
        ({"mount": "10.0.0.2:/share"}, "--mount=10.0.0.2:/share is none; write SERVER:/EXPORT=/PATH"),
        ({"mount": "gs://mine=/mnt/shared"}, "--mount=gs://mine=/mnt/shared: a bucket needs no mount; give its gs://"),
        ({"mount": "a:/b=/"}, "--mount=a:/b=/ is none"),
        ({"env": "2A"}, "--env: '2A' can't name a variable; write NAME, or NAME=VALUE"),
        ({"env": "HF_TOKEN,NOT_SET_HERE"}, "--env=NOT_SET_HERE: there is no such variable here; set it"),
        ({"command": [" ".join(COMMAND)]}, "the command .python -m .* is one word.*; leave its quotes out"),
        (
            {"command": ["HF_TOKEN=secret", *COMMAND]},
            "^HF_TOKEN=... before .* printed and logged; give --env=HF_TOKEN$",
        ),
        ({"command": ["env", "A_KEY=secret", *COMMAND]}, "^A_KEY=... before .* printed and logged; give --env=A_KEY$"),
        ({"poll": -1.0}, "^--poll=-1.0 is negative; use 0 or more$"),
        ({"name": "My_Run"}, "--name=My_Run can't name a slice; use at most 63 of a-z, 0-9 and -, a letter first"),
        ({"name": "1run"}, "--name=1run can't name a slice"),
        ({"name": "a-"}, "--name=a- can't name a slice; .* no - last"),
        ({"name": "a" * 70}, "can't name a slice"),
        ({"name": "My_Run", "delete": True}, "--name=My_Run can't name a slice"),
        ({"zone": "us-east5"}, "--zone=us-east5 is a region; add the zone's letter, such as us-east5-b"),
        ({"zone": "us east5"}, "--zone=us east5 is no zone; use one, such as us-east5-b"),
        ({"project": "p x"}, "--project=p x is no project's id"),
        ({"max_restarts": -1}, "^--max-restarts=-1 is negative; use 0 or more$"),
    ],
)
def test_a_mistake_is_one_line_and_creates_nothing(launch, changes, message):
    with pytest.raises(UserError, match=message):
        launch({}, **changes)
    assert launch.calls() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=configs/nope.py", WORKDIR], "would fail on v6e:4x4: config file configs/nope.py does not exist"),
        ([CONFIG, WORKDIR, "--config.mesh.tensro=3"], "unknown config key --config.mesh.tensro"),
        ([CONFIG, WORKDIR, "--config.mesh.tensor=3"], "a mesh of replica 1 x fsdp 5 x tensor 3 .* there are 16"),
        ([CONFIG, WORKDIR, "--config.objective.aggregate=papre"], "objective.aggregate 'papre' is unknown"),
        ([CONFIG, WORKDIR, "--wrkdir=x"], "unknown flag --wrkdir"),
        ([CONFIG], "would fail on v6e:4x4: missing --workdir"),
        (["--config=/mnt/shared/not_here.py"], "missing --workdir; give a folder that stays"),
        ([WORKDIR], "missing --config"),
        (["--config=/home/me/mine.py", WORKDIR], "--config=/home/me/mine.py is not on the hosts; give a path in"),
        ([CONFIG, "--workdir", "runs/a"], "--workdir=runs/a would go with the slice"),
        ([CONFIG, "--workdir=/home/me/a"], "--workdir=/home/me/a would go with the slice; give a path in a bucket"),
        ([CONFIG, "--workdir=/mnt/../tmp/a"], "--workdir=/mnt/../tmp/a would go with the slice"),
        ([CONFIG, "--workdir=s3://bucket/a"], "s3://bucket/a is on s3://, which is not supported; give"),
        ([CONFIG, "--workdir=gs:///a"], "gs:///a names no bucket; write gs://BUCKET/NAME"),
        (["--config=gs://bucket/a.py", WORKDIR], "--config gs://bucket/a.py is in a bucket; give a path on a disk"),
        (
            [*OWN_DATA, "--config.data.train=/data/a.jsonl"],
            "--config.data.train=/data/a.jsonl is not on the hosts; give a path in a bucket or on a --mount",
        ),
        (
            [*OWN_DATA, "--config.data.train=s3://mine/a.jsonl"],
            "data.train: s3://mine/a.jsonl is on s3://, which is not supported",
        ),
    ],
)
def test_a_training_command_that_can_not_run_creates_nothing(launch, arguments, message):
    for dry_run in (True, False):
        with pytest.raises(UserError, match=message) as caught:
            launch({}, command=[*TRAIN, *arguments], dry_run=dry_run)
        assert "\n" not in str(caught.value)
    assert launch.calls() == []


def test_a_program_that_is_not_there_is_named(launch):
    for name in ("trian", "config"):  # the second is a module, and does nothing when it is run
        known = "there are collect, convert, data, diagnose, eval"
        with pytest.raises(UserError, match=f"cgrpo_jax.{name} is no program of this project.*{known}"):
            launch({}, command=["python", "-m", f"cgrpo_jax.{name}", CONFIG, WORKDIR])
    assert launch.calls() == []


def test_what_can_run_is_taken(launch, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # paths begin in the repository, where the hosts start
    for command in (
        [*TRAIN, CONFIG, "--workdir", "/mnt/shared/a"],
        [*TRAIN, CONFIG, "--workdir=gs://bucket/a"],
        [*TRAIN, "--config=/mnt/shared/not_here.py", WORKDIR],
        ["env", *COMMAND, "--distributed"],
        ["python", "-m", "cgrpo_jax.evaluate", CONFIG, WORKDIR],
        ["python", "-m", "cgrpo_jax.sample", CONFIG, WORKDIR, "--question=1+1"],
        ["python", "-m", "cgrpo_jax.convert", "--from_hf=/mnt/a", "--to=/mnt/b"],
        ["python", "train.py"],
        ["cgrpo", "train", CONFIG, WORKDIR],
    ):
        assert launch({}, command=command, dry_run=True) == (None, [])


def test_a_configuration_that_the_commit_lacks_is_refused(launch, monkeypatch, tmp_path):
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "configs", root / "configs", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(tpu_pod, "ROOT", root)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    with pytest.raises(UserError, match="--config=configs/quickstart.py is not in a git checkout .*; launch from one"):
        launch({}, dry_run=True)
    who = ["-c", "user.name=a", "-c", "user.email=a"]
    for arguments in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--no-verify", "--message=a"]):
        subprocess.run(["git", "-C", root, *arguments], check=True)
    assert launch({}, dry_run=True) == (None, [])
    config = root / "configs/quickstart.py"
    (root / "configs/mine.py").write_text(config.read_text())
    (root / "configs/ignored.py").write_text(config.read_text())
    (root / ".git/info/exclude").write_text("ignored.py")
    config.write_text(config.read_text() + "\n")
    for name in ("mine", "ignored", "quickstart"):
        with pytest.raises(UserError, match=f"--config=configs/{name}.py is not committed as it is here.*: commit it"):
            launch({}, command=[*TRAIN, f"--config=configs/{name}.py", WORKDIR], dry_run=True)


def test_gcloud_s_own_refusal_ends_the_launch_in_one_line(launch):
    with pytest.raises(UserError, match="creating the slice failed; gcloud's message is above"):
        launch({QR: [NOT_FOUND], "queued-resources create": [["", 1]]})
    assert kinds(launch.calls()) == ["create"]  # there is nothing to delete
    with pytest.raises(UserError, match="pod is in the state ODD, which this launcher does not know"):
        launch({QR: [["ODD", 0]]})


def test_nothing_is_said_of_a_slice_that_was_never_made(launch, capsys):
    for keep in (False, True):
        with pytest.raises(UserError, match="creating the slice failed"):
            refused = {"queued-resources create": [["", 1]], "queued-resources delete": [["", 1]]}
            launch({QR: [NOT_FOUND]} | refused, keep=keep)
        out = capsys.readouterr().out
        assert "deleted" not in out and "kept" not in out


def test_what_a_failed_creation_leaves_is_deleted(launch):
    with pytest.raises(UserError, match="creating the slice failed"):
        launch({QR: [NOT_FOUND, ["FAILED", 0]], "queued-resources create": [["", 1]]})
    assert kinds(launch.calls()) == ["create", "delete"]


def test_without_gcloud_a_line_says_what_to_install(launch, tmp_path):
    (tmp_path / "bin" / "gcloud").unlink()
    assert shutil.which("gcloud") is None
    with pytest.raises(UserError, match="gcloud is not installed; install the Google Cloud CLI and log in"):
        launch({})


def test_without_git_or_a_checkout_a_line_says_so_and_nothing_is_created(launch, tmp_path, monkeypatch):
    monkeypatch.setattr(tpu_pod, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    with pytest.raises(
        UserError, match=r"packing the current commit \(launch from a git checkout\) failed; git's mess"
    ):
        launch(NEW, command=["python", "x.py"])
    (tmp_path / "bin" / "git").unlink()
    with pytest.raises(UserError, match="git is not installed; install it: what is shipped is the current commit"):
        launch(NEW, command=["python", "x.py"])
    assert launch.calls() == []


# --- the command line ---------------------------------------------------------------------------------------------


def given(*argv):
    seen = {}
    flags = {"max_restarts": command_line.cli.Flag("n", int, 3), "dry_run": command_line.DRY_RUN}
    command_line.run(lambda **values: seen.update(values), doc="What it does.", flags=flags, argv=argv)
    return seen


def test_flags_may_have_dashes_and_the_command_keeps_its_own():
    expected = {"max_restarts": 5, "dry_run": True, "command": ["x", "--dry-run", "--a_b", "--", "-h"]}
    for argv in (["--max-restarts=5", "--dry-run"], ["--max_restarts", "5", "--dry_run"]):
        assert given(*argv, "--", "x", "--dry-run", "--a_b", "--", "-h") == expected
    assert given() == {"max_restarts": 3, "dry_run": False, "command": []}


def test_help_and_unknown_flags(capsys):
    for argv, code in ((["--help"], 0), (["--max-restart=5"], 2), (["stray"], 2)):
        with pytest.raises(SystemExit) as caught:
            given(*argv)
        assert caught.value.code == code
    out, err = capsys.readouterr()
    assert out == "What it does.\n"
    assert (
        "unknown flag --max-restart (did you mean --max-restarts?); flags are --max-restarts, --dry-run, --help" in err
    )
    assert err.count("\n") == 2


@pytest.mark.parametrize(
    "argv", [["python", "-m", "x"], ["--dry-run", "python", "-m", "x"], ["--max-restarts", "5", "python", "-m", "x"]]
)
def test_a_command_without_dashes_before_it_is_told_where_it_goes(capsys, argv):
    with pytest.raises(SystemExit) as caught:
        given(*argv)
    assert caught.value.code == 2
    expected = "error: unexpected python; a command goes after --, and the value of a flag after =\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("program", [finetune, evaluate, diagnose, collect, sample])
def test_the_flags_of_a_program_are_those_that_it_has(program):
    name = program.__name__.rpartition(".")[2]
    known = {flag: spec.kind for flag, spec in preflight.RUNS[name].items()}
    assert known == {flag: spec.kind for flag, spec in program.FLAGS.items()}


def test_finetune_is_checked_as_what_learns_from_rows(launch):
    """So are its keys and those that it does not read, and so is no length of a run that follows from the rows."""
    command = ["python", "-m", "cgrpo_jax.finetune", "--config=configs/sft.py", WORKDIR]
    command += ["--config.finetune.epochs=1", "--config.optimizer.warmup_updates=500"]
    launch({}, command=command, dry_run=True)
    for change, message in {
        "--config.objective.gamma=0.5": "objective.gamma .* cgrpo finetune does not read it",
        "--config.num_responses=3": "num_responses 3 .* cgrpo finetune does not read it",
        "--config.finetune.los=dpo": "unknown config key --config.finetune.los",
        "--refine": "unknown flag --refine",
    }.items():
        with pytest.raises(UserError, match=message):
            launch({}, command=[*command, change], dry_run=True)


def test_what_trains_alone_may_not_have_is_no_mistake_of_an_evaluation(launch):
    """Nor a key that training would not read: `evaluate` takes both."""
    changes = ["--config.sampling.top_p=0.9", "--config.critique.kind=execution", "--config.critic.sees=answer"]
    command = [*TRAIN, CONFIG, WORKDIR, *changes]
    with pytest.raises(UserError, match="changes nothing|needs objective.old_logp"):
        launch({}, command=command, dry_run=True)
    launch({}, command=[one.replace("cgrpo_jax.train", "cgrpo_jax.evaluate") for one in command], dry_run=True)
