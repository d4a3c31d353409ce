"""Runs a command on all hosts of a Cloud TPU slice: creates the slice, ships the code, gathers the logs, resumes.

    python launch/tpu_pod.py --name=cgrpo --topology=v6e:8x8 --zone=us-east5-b --project=PROJECT --spot -- \\
        python -m cgrpo_jax.train --config=configs/qwen3_8b.py --workdir=gs://BUCKET/qwen3_8b ...

  --name             of the queued resource and its node; one that exists is used
  --topology         such as v6e:4x4 (v4, v5e, v5p, v6e)
  --zone, --project  where, and for whom
  --spot             a spot slice, which can be preempted (default: on demand)
  --runtime-version  of the slice's software (default: the one for JAX on this TPU version)
  --mount            SERVER:/EXPORT=/PATH, several with commas between: folders of an NFS server, such as Filestore's,
                     that all hosts mount before each start (a bucket needs none: write gs://BUCKET/...)
  --env              variables of the hosts' environment, NAME or NAME=VALUE, several with commas between. A NAME alone
                     has its value here, and goes in a file that its owner alone may read: a secret is never printed
  --network, --subnetwork, --service-account   of the hosts (default: the project's)
  --logs             local folder of this slice: attempt-K/WORKER.log holds what a host printed (default: logs)
  --max-restarts     new attempts after a preemption or a lost connection (default: 10)
  --poll             seconds between looks at the state, of which ten in a row may fail (default: 30)
  --keep             leave the slice at the end; without it, it is deleted however this ends, unless gcloud can't say
                     whether it still stands
  --delete           delete the slice, and nothing else
  --dry-run          print the gcloud commands of an attempt, and do nothing

The code is the current commit (`git archive`): no uncommitted change, no ignored file goes along. What can't run is
refused before a slice is made: a program that does not exist, a configuration that is wrong or not committed, a mesh
that does not divide the slice's devices, a path that is on no disk of a fresh slice, a bucket or an object that isn't
there.
The command gets --distributed, and CGRPO_STOPPED_STATUS=75: so exits a training run that SIGTERM stopped.
After a preemption the slice is created again and the same command runs again: it resumes from its --workdir, which
outlives the slice, in a bucket or on a --mount. A run that SIGTERM stopped on a slice that stands ends the launch with
status 75.
gcloud must be installed and logged in. The hosts' service account must be allowed to read and write the bucket
(roles/storage.objectUser and roles/storage.legacyBucketReader).
"""

import functools
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

import command_line
import gcloud
import on_hosts
import preflight
import tpus

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli

ROOT = pathlib.Path(__file__).resolve().parent.parent

REQUIRED = ("name", "topology", "zone", "project")
FLAGS = {
    "name": cli.Flag("of the slice"),
    "topology": cli.Flag("such as v6e:4x4"),
    "zone": cli.Flag("where"),
    "project": cli.Flag("for whom"),
    "spot": cli.Flag("a spot slice", bool, False),
    "runtime_version": cli.Flag("of the slice's software", str, ""),
    "mount": cli.Flag("SERVER:/EXPORT=/PATH", str, ""),
    "env": cli.Flag("NAME, or NAME=VALUE", str, ""),
    "network": cli.Flag("of the hosts", str, ""),
    "subnetwork": cli.Flag("of the hosts", str, ""),
    "service_account": cli.Flag("of the hosts", str, ""),
    "logs": cli.Flag("local folder", str, "logs"),
    "max_restarts": cli.Flag("new attempts", int, 10),
    "poll": cli.Flag("seconds between looks at the state", float, 30.0),
    "keep": cli.Flag("leave the slice", bool, False),
    "delete": cli.Flag("delete the slice, and nothing else", bool, False),
    "dry_run": command_line.DRY_RUN,
}

# States of a queued resource that lead to ACTIVE, and those that lead nowhere.
WAITING = ("CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING")
LOST = ("SUSPENDING", "SUSPENDED", "FAILED", "DELETING", "")
DEAD_NODE = ("PREEMPTED", "TERMINATED", "STOPPED", "")
LOST_CONNECTION = 255  # ssh's exit status
STOPPED = command_line.STOPPED_STATUS

LOOKS = 10  # at a state that gcloud fails to give, before the launch ends
LOOKS_FOR_PREEMPTION = 3  # a state may show it later than the hosts' SIGTERM


class Gone(Exception):
    """The slice was lost while it was being set up."""


class Unknown(UserError):
    """It can't be found out whether the slice still stands: the network, the login or a quota fails."""


def archive(path: pathlib.Path) -> list[str]:
    """Returns the command that packs the current commit."""
    return ["git", "-C", str(ROOT), "archive", "--format=tar.gz", f"--output={path}", "HEAD"]


class Attempts:
    """Runs a command on a pod until it ends by itself."""

    def __init__(
        self,
        pod: gcloud.Pod,
        script: str,
        *,
        logs: pathlib.Path,
        max_restarts: int,
        poll: float,
        packed: pathlib.Path,
        environment: pathlib.Path | None = None,
    ):
        self.pod = pod
        self.script = script
        self.logs = logs
        self.max_restarts = max_restarts
        self.poll = poll
        self.packed = packed
        self.environment = environment  # a file that the hosts read, if any
        self.folder = logs  # of the last attempt
        self.absent = False  # known not to have been made

    def run(self) -> int:
        """Returns the exit status of the command."""
        restarts, fresh = 0, True
        while True:
            status: int | None = None
            try:
                if fresh:
                    self._ready()
                status = self._attempt()
            except Gone as error:
                _say(str(error))
            if status == 0:
                return 0
            lost = status is None or self._lost(LOOKS_FOR_PREEMPTION if status == STOPPED else 1)
            if not lost and status == STOPPED:
                _say(f"SIGTERM stopped the run, and the slice stands; the same command resumes it (see {self.folder})")
                return status
            if not lost and status != LOST_CONNECTION:
                _say(f"the command failed with status {status}; see {self.folder}")
                return status
            if restarts == self.max_restarts:
                _say(f"{'preempted' if lost else 'connection lost'} after {restarts} restarts, the last of them")
                return status or 1
            restarts += 1
            what = "the slice was preempted: creating it again" if lost else "the connection was lost: running again"
            _say(f"{what} (restart {restarts} of {self.max_restarts})")
            fresh = lost

    def _ready(self) -> None:
        """Makes the slice, or takes the one that exists, and installs the code on it."""
        state = self._ask(self.pod.state())
        if state is not None and state in LOST:
            _check(self.pod.delete(), "deleting the slice")
            state = None
        if state is None:
            try:
                _check(self.pod.create(), "creating the slice")
            except UserError:
                self.absent = self._ask(self.pod.state()) is None
                raise
        said = None
        while (state := self._ask(self.pod.state()) or "") != "ACTIVE":
            if state in LOST:
                raise Gone(f"{self.pod.name} is {state or 'gone'}")
            if state not in WAITING:
                raise UserError(f"{self.pod.name} is in the state {state}, which this launcher does not know")
            if state != said:
                _say(f"{self.pod.name} is {state}; waiting")
                said = state
            time.sleep(self.poll)
        ship = [(self.pod.ship(str(self.packed)), "shipping the code")]
        if self.environment:
            ship.append((self.pod.ship_environment(str(self.environment)), "shipping the environment"))
        install = on_hosts.install_script(with_environment=bool(self.environment))
        for command, what in (*ship, (self.pod.ssh(install), "installing the code")):
            if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
                if self._lost():
                    raise Gone(f"{self.pod.name} was lost while {what}")
                raise UserError(f"{what} on {self.pod.name} failed; gcloud's message is above")

    def _attempt(self) -> int:
        self.folder = next_folder(self.logs)
        self.folder.mkdir()
        _say(f"running on {self.pod.slice.hosts} hosts; each writes to {self.folder}/WORKER.log")
        command = self.pod.ssh(self.script, f"--output-directory={self.folder}")
        return subprocess.run(command, stdin=subprocess.DEVNULL).returncode

    def _lost(self, looks: int = 1) -> bool:
        for look in range(looks):
            if look:
                time.sleep(self.poll)
            state = self._ask(self.pod.state())
            if state is None or state in LOST or (self._ask(self.pod.node_state()) or "") in DEAD_NODE:
                return True
        return False

    def _ask(self, command: Sequence[str]) -> str | None:
        """Returns the state that a command prints, or None if there is no such slice.

        Raises:
          Unknown: the command keeps failing for another reason, which says nothing about the slice.
        """
        for look in range(LOOKS):
            if look:
                time.sleep(self.poll)
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
            if not done.returncode:
                return done.stdout.strip()
            if "NOT_FOUND" in done.stderr:
                return None
            why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            _say(f"gcloud can't give the state of {self.pod.name} ({why}); look {look + 1} of {LOOKS}")
        raise Unknown(
            f"gcloud can't give the state of {self.pod.name} ({why}); the slice may still stand: the same command "
            f"resumes, and this deletes it: {shlex.join(self.pod.delete())}"
        )


def next_folder(logs: pathlib.Path) -> pathlib.Path:
    """Returns the folder of the next attempt: attempt-K with a K above all that are there."""
    found = [re.fullmatch(r"attempt-(\d+)", path.name) for path in logs.glob("attempt-*")]
    return logs / f"attempt-{max((int(match[1]) for match in found if match), default=-1) + 1}"


def _say(text: str) -> None:
    print(f"tpu_pod: {text}", flush=True)


def _check(command: Sequence[str], what: str) -> None:
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        raise UserError(f"{what} failed; {command[0]}'s message is above")


def check(
    *,
    name: str,
    topology: str,
    zone: str,
    project: str,
    max_restarts: int,
    poll: float,
    delete: bool,
    command: Sequence[str],
    mount: str = "",
    env: str = "",
    **_,
) -> list[preflight.InBucket]:
    """Raises a `UserError` if the slice can't be, or the command can't run on it; takes all flags, as `main` does.

    Returns:
      What must be there in buckets, which only gcloud can say.
    """
    found = tpus.find(topology)
    found.cloud_flags()
    preflight.check_name("--name", name, what="a slice", limit=63)
    preflight.check_place(zone=zone, project=project)
    if delete:
        if command:
            raise UserError("--delete runs no command; leave --delete or the command out")
        return []
    preflight.check_not_negative("--max-restarts", max_restarts)
    preflight.check_not_negative("--poll", poll)
    on_hosts.environment(env)
    on_hosts.check_unassigned(command)
    targets = [one.target for one in on_hosts.mounts(mount)]
    outlives = functools.partial(preflight.check_outlives_slice, targets=targets)
    given = preflight.check_command(command, where=found, root=ROOT, check_folder=outlives)
    if given.config:
        preflight.check_on_hosts("--config", given.config, root=ROOT, targets=targets)
    for flag, path in given.inputs:
        preflight.check_on_hosts(flag, path, root=ROOT, targets=targets)
    return given.in_buckets


def main(
    name: str,
    topology: str,
    zone: str,
    project: str,
    spot: bool,
    runtime_version: str,
    network: str,
    subnetwork: str,
    service_account: str,
    mount: str,
    env: str,
    logs: str,
    max_restarts: int,
    poll: float,
    keep: bool,
    delete: bool,
    dry_run: bool,
    command: Sequence[str],
    start: Callable[[Attempts], int] = Attempts.run,
) -> None:
    """Runs the command, or says what it would run."""
    in_buckets = check(
        name=name,
        topology=topology,
        zone=zone,
        project=project,
        max_restarts=max_restarts,
        poll=poll,
        delete=delete,
        command=command,
        mount=mount,
        env=env,
    )
    found = tpus.find(topology)
    options = {"network": network, "subnetwork": subnetwork, "service-account": service_account}
    flags = [f"--runtime-version={runtime_version or found.generation.runtime}"]
    flags += ["--spot"] * spot + [f"--{flag}={value}" for flag, value in options.items() if value]
    pod = gcloud.Pod(name, found, zone, project, flags)
    if delete:
        if dry_run:
            print(shlex.join(pod.delete()))
        else:
            _check(pod.delete(), "deleting the slice")
        return
    whole = [*command, *["--distributed"] * ("--distributed" not in command)]
    script, variables = on_hosts.run_script(whole, on_hosts.mounts(mount)), on_hosts.environment(env)
    looks = [preflight.look(one) for one in in_buckets]
    folder = pathlib.Path(logs)
    if dry_run:
        log_flag = f"--output-directory={next_folder(folder)}"
        steps = [*looks, archive(pathlib.Path(on_hosts.ARCHIVE)), pod.create(), pod.state()]
        steps += [pod.ship(on_hosts.ARCHIVE)] + [pod.ship_environment(on_hosts.ENVIRONMENT)] * bool(variables)
        steps += [pod.ssh(on_hosts.install_script(with_environment=bool(variables))), pod.ssh(script, log_flag)]
        steps += [pod.delete()] * (not keep)
        print("\n".join(shlex.join(step) for step in steps))
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--logs={logs} can't be written ({error}); give another --logs") from error
    for one in in_buckets:
        preflight.check_there(one)
    with tempfile.TemporaryDirectory() as temporary:  # which this user alone may read
        packed = pathlib.Path(temporary) / on_hosts.ARCHIVE
        pack(packed)
        brought = pathlib.Path(temporary) / on_hosts.ENVIRONMENT if variables else None
        if brought:
            brought.touch(mode=0o600)
            brought.write_text(on_hosts.environment_file(variables))
        attempts = Attempts(
            pod, script, logs=folder, max_restarts=max_restarts, poll=poll, packed=packed, environment=brought
        )
        sys.exit(run(attempts, keep=keep, start=start))


def pack(path: pathlib.Path) -> None:
    """Packs the current commit, and says if that leaves something out."""
    try:
        _check(archive(path), "packing the current commit (launch from a git checkout)")
        if subprocess.run(["git", "-C", ROOT, "status", "--porcelain"], capture_output=True).stdout:
            _say("changes that are not committed do not go along")
    except FileNotFoundError as error:
        raise UserError("git is not installed; install it: what is shipped is the current commit") from error


def run(attempts: Attempts, *, keep: bool, start: Callable[[Attempts], int]) -> int:
    """Returns the exit status of the command, and deletes the slice unless it is to be kept or is unknown."""
    pod = attempts.pod
    delete = not keep
    try:
        return start(attempts)
    except Unknown:
        delete = False
        raise
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is not installed; install the Google Cloud CLI and log in") from error
    finally:
        if attempts.absent:
            pass
        elif keep:
            _say(f"{pod.name} is kept; delete it with --delete")
        elif delete and shutil.which("gcloud") and subprocess.run(pod.delete(), stdin=subprocess.DEVNULL).returncode:
            _say(f"{pod.name} could not be deleted; see to it: {shlex.join(pod.delete())}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the slice is deleted then too
    command_line.run(
        main,
        doc=__doc__,
        require=REQUIRED,
        flags=FLAGS,
    )
