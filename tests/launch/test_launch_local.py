"""local_pod.sh: as many processes as hosts, what they print, how they end; and shellcheck on every script."""

import os
import pathlib
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys

import paths
import patience
import pytest

ROOT = paths.ROOT
LOCAL_POD = ROOT / "launch" / "local_pod.sh"
SHELL_SCRIPTS = sorted([*(ROOT / "launch").glob("*.sh"), ROOT / ".ci" / "run"])

# What a process does, by its number: waits for a signal, ends with a status, or only says what it was given.
PROCESS = """
import json, os, signal, sys
me = os.environ["JAX_PROCESS_ID"]
what = json.loads(sys.argv[1]).get(me, "say")
if what == "wait":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda got, frame: (print("got", signal.Signals(got).name, flush=True), sys.exit(7)))
print("ready", flush=True)
if what == "wait":
    while True:
        signal.pause()
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    while True:
        signal.pause()
if what == "say":
    names = ["JAX_NUM_PROCESSES", "JAX_PLATFORMS", "JAX_CPU_COLLECTIVES_IMPLEMENTATION", "XLA_FLAGS"]
    print(" ".join(os.environ[name] for name in names), file=sys.stderr)
    sys.stdout.write("no newline")
    sys.exit(0)
sys.exit(what)
"""

# A job across processes: every one adds its number over gloo.
JAX = """
import jax, numpy as np
from jax.experimental import multihost_utils
from cgrpo_jax.runtime import processes
processes.start_distributed()
every = multihost_utils.process_allgather(np.array([jax.process_index() + 1]))
print(jax.process_count(), jax.local_device_count(), jax.device_count(), every.sum())
"""


def environment(**changes):
    drop = ("JAX_PLATFORMS", "JAX_CPU_COLLECTIVES_IMPLEMENTATION", "XLA_FLAGS")
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return kept | {"PYTHONPATH": str(ROOT), "PYTHON": sys.executable} | changes


def local_pod(*arguments, env=None):
    command = [str(LOCAL_POD), *arguments]
    return subprocess.run(
        command, env=env or environment(), capture_output=True, text=True, timeout=patience.seconds(120)
    )


def doing(what):
    return ["--", sys.executable, "-S", "-c", PROCESS, what]


def test_every_process_is_told_its_place_and_its_lines_carry_its_number():
    done = local_pod("3", "--devices=2", *doing("{}"))
    assert (done.returncode, done.stderr) == (0, "")
    line = "3 cpu gloo --xla_force_host_platform_device_count=2"
    expected = [f"[{i}] {text}" for i in range(3) for text in ("ready", line, "no newline")]
    assert sorted(done.stdout.splitlines()) == sorted(expected)


def test_what_the_user_has_set_stays():
    env = environment(JAX_PLATFORMS="tpu", JAX_CPU_COLLECTIVES_IMPLEMENTATION="mpi", XLA_FLAGS="--xla_a=1")
    done = local_pod("1", *doing("{}"), env=env)
    assert "[0] 1 tpu mpi --xla_a=1 --xla_force_host_platform_device_count=1" in done.stdout.splitlines()


def test_the_processes_find_each_other():
    done = local_pod("2", "--devices=3", "--", sys.executable, "-c", JAX)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {line for line in done.stdout.splitlines() if " 6 " in line} == {"[0] 2 3 6 3", "[1] 2 3 6 3"}


def test_the_first_failure_is_the_exit_status_and_the_others_end_by_themselves():
    done = local_pod("2", *doing('{"1": 3}'))
    assert done.returncode == 3
    assert "local_pod: process 1 ended with status 3" in done.stderr and "sending" not in done.stderr
    assert "[0] no newline" in done.stdout


def test_when_all_fail_nobody_is_waited_for():
    done = local_pod("3", *doing('{"0": 3, "1": 3, "2": 3}'))
    assert done.returncode == 3 and "seconds to notice" not in done.stderr
    ended = sorted(line for line in done.stderr.splitlines())
    assert ended == [f"local_pod: process {i} ended with status 3" for i in range(3)]


def test_who_does_not_notice_that_another_failed_is_stopped_after_the_grace_period():
    done = local_pod("3", "--grace=1", *doing('{"0": 4, "1": "wait", "2": "deaf"}'))
    assert done.returncode == 4
    assert "the others have 1 seconds to notice" in done.stderr
    assert re.search(r"sending TERM to process (1 2|2 1)", done.stderr) and "sending KILL to process 2" in done.stderr
    assert "[1] got SIGTERM" in done.stdout


# Notes its number; then, by its argument, saves what it is told to when SIGTERM comes, or ends of nothing but SIGKILL.
WRAPPED = """
import os, signal, sys
def save(got, frame):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # as in training: a second one ends it at once
    print("got SIGTERM", flush=True)
    with open("told") as told:
        print("saved", told.read(), flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, save if sys.argv[1] == "saves" else signal.SIG_IGN)
print("pid", os.getpid(), flush=True)
while True:
    signal.pause()
"""


@pytest.fixture
def wrapped(tmp_path):
    """Gives a function that starts a pod of one wrapped command, and returns the pod and a handle of the command."""
    handles, pods = [], []

    def start(wrapper, what, *flags):
        os.mkfifo(tmp_path / "told")
        (tmp_path / "wrapped.py").write_text(WRAPPED)
        (tmp_path / "inner.sh").write_text(f"{shlex.quote(sys.executable)} -S wrapped.py {what}; true\n")
        command = [str(LOCAL_POD), "1", *flags, "--", *wrapper]
        pods.append(subprocess.Popen(command, env=environment(), cwd=tmp_path, stdout=-1, stderr=-1, text=True))
        number, name, pid = pods[0].stdout.readline().split()
        assert (number, name) == ("[0]", "pid")
        handles.append(os.pidfd_open(int(pid)))
        return pods[0], handles[0]

    yield start
    for handle in handles:
        if not ended(handle, within=0):
            signal.pidfd_send_signal(handle, signal.SIGKILL)
        os.close(handle)
    for pod in pods:
        pod.communicate(timeout=patience.seconds(60))


def ended(handle, *, within):
    return bool(select.select([handle], [], [], within)[0])


# A little late: of two signals at once, a process notices one.
PASSES_ON = '"$0" -S wrapped.py saves & trap "sleep 0.2; kill $!" TERM; wait $!; wait $!'
WRAPPERS = {
    "ends of the signal": (["bash", "-c", "bash inner.sh; true"], 143),
    "passes the signal on": (["bash", "-c", PASSES_ON, sys.executable], 0),
}


@pytest.mark.parametrize(("wrapper", "status"), WRAPPERS.values(), ids=WRAPPERS)
def test_sigterm_reaches_once_what_a_wrapper_has_started_and_the_pod_waits_for_it(wrapped, tmp_path, wrapper, status):
    pod, handle = wrapped(wrapper, "saves")
    pod.send_signal(signal.SIGTERM)
    assert pod.stdout.readline() == "[0] got SIGTERM\n"
    assert not ended(handle, within=0.5)  # no second signal
    (tmp_path / "told").write_text("all")
    out, _ = pod.communicate(timeout=patience.seconds(60))
    assert out == "[0] saved all\n" and pod.returncode == status
    assert ended(handle, within=30)


def test_what_a_wrapper_has_started_and_does_not_end_is_killed_after_the_grace_period(wrapped):
    pod, handle = wrapped(WRAPPERS["ends of the signal"][0], "stays", "--grace=1")
    pod.send_signal(signal.SIGTERM)
    _, err = pod.communicate(timeout=patience.seconds(60))
    assert pod.returncode == 143 and "local_pod: sending KILL to what process 0 left running" in err
    assert ended(handle, within=30)


def test_what_a_process_leaves_behind_does_not_hold_the_pod(wrapped):
    pod, handle = wrapped(["bash", "-c", "bash inner.sh &"], "stays")
    assert pod.wait(timeout=patience.seconds(30)) == 0
    assert not ended(handle, within=0)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signals_reach_every_process(name):
    command = [str(LOCAL_POD), "2", *doing('{"0": "wait", "1": "wait"}')]
    with subprocess.Popen(command, env=environment(), stdout=-1, stderr=-1, text=True) as pod:
        assert {pod.stdout.readline(), pod.stdout.readline()} == {"[0] ready\n", "[1] ready\n"}
        pod.send_signal(signal.Signals[name])
        out, _ = pod.communicate(timeout=patience.seconds(60))
    assert pod.returncode == 7 and set(out.splitlines()) == {f"[0] got {name}", f"[1] got {name}"}


def test_a_dry_run_prints_a_command_for_each_process_and_starts_none(tmp_path):
    done = local_pod("2", "--devices=4", "--dry-run", "--", "touch", str(tmp_path / "a b"))
    assert done.returncode == 0 and not list(tmp_path.iterdir())
    lines = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [line[6] for line in lines] == ["JAX_PROCESS_ID=0", "JAX_PROCESS_ID=1"]
    for line in lines:
        assert line[:6] == [
            "env", "JAX_PLATFORMS=cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo",
            "XLA_FLAGS=--xla_force_host_platform_device_count=4", "JAX_COORDINATOR_ADDRESS=localhost:PORT",
            "JAX_NUM_PROCESSES=2",
        ]  # fmt: skip
        assert line[7:] == ["touch", str(tmp_path / "a b")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the number of processes is missing; see --help"),
        (["two", "--", "x"], "the number of processes is 'two'; give a whole number of at least 1"),
        (["0", "--", "x"], "the number of processes is '0'"),
        (["2", "--devices=0", "--", "x"], "--devices is '0'; give a whole number"),
        (["2", "--grace=", "--", "x"], "--grace is ''; give a whole number"),
        (["2", "--device=2", "--", "x"], "unknown flag --device=2; flags are --devices, --grace, --dry-run, --help"),
        (["2", "python", "x.py"], "unexpected python; write the command after --"),
        (["2"], "no command to run; write it after --"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(arguments, message):
    done = local_pod(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith(f"error: {message}") and done.stderr.count("\n") == 1


def test_help_says_how_to_use_it():
    done = local_pod("--help")
    assert done.returncode == 0 and done.stdout.startswith("usage: launch/local_pod.sh N [--devices=D]")


@pytest.mark.parametrize("script", SHELL_SCRIPTS, ids=lambda path: path.name)
def test_every_shell_script_passes_shellcheck(script):
    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    assert shellcheck, "pip install -e '.[test]' brings shellcheck"
    done = subprocess.run([shellcheck, str(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_runs_on_the_hosts_passes_shellcheck_too():
    sys.path.insert(0, str(ROOT / "launch"))
    import on_hosts

    shellcheck = shutil.which("shellcheck", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}")
    disks = on_hosts.mounts("10.0.0.2:/share=/mnt/shared")
    texts = [on_hosts.install_script(with_environment=brought) for brought in (False, True)]
    for text in (*texts, on_hosts.run_script(["python", "x.py"], disks)):
        # SC1090, SC1091: the file that is sourced, SC2164: a failed cd, are seen on the host only.
        options = ["--shell=bash", "--exclude=SC1090,SC1091,SC2164", "-"]
        done = subprocess.run([shellcheck, *options], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, "")
