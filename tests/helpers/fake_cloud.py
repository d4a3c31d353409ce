"""A stand-in for gcloud that keeps state: slices with hosts, which have disks and mounts, and buckets.

    cloud = FakeCloud(folder)
    cloud.make(preempted_runs=1)   # the first run of a command is ended by a preemption
    monkeypatch.setenv("PATH", str(cloud.path))

What is run on a host runs, in a folder that is its home, and with programs that are not there replaced: `mount` links
an export, which all hosts of all slices share, to a folder of the host. A slice that is made again has empty disks.
"""

import json
import pathlib
import shutil
import subprocess
import sys

_PROGRAM = """#!{python} -S
import sys
sys.path.insert(0, {helpers!r})
import fake_cloud
sys.exit(fake_cloud.gcloud(fake_cloud.FakeCloud({folder!r}), sys.argv[1:]))
"""
# On a host: the command that is run, and what needs a network, another system or rights.
_ON_HOST = {
    "sudo": '#!/bin/bash\nexec "$@"\n',
    "apt-get": "#!/bin/bash\n",
    "python3": "#!/bin/bash\nmkdir -p cgrpo_venv/bin; touch cgrpo_venv/bin/activate\n",
    "mountpoint": '#!/bin/bash\n[ -L "$HOST_DISK$2" ]\n',
    # The host's own mkdir and mount act below the host's disk.
    "mkdir": '#!/bin/bash\nif [ "$1" = -p ] && [[ "$2" = /* ]]; then /bin/mkdir -p "$HOST_DISK$(dirname "$2")"; '
    'else /bin/mkdir "$@"; fi\n',
    "mount": '#!/bin/bash\nln -sfn "$EXPORTS/${5//[:\\/]/_}" "$HOST_DISK$6"; echo "$5 $6" >> "$HOST_DISK/mounts"\n',
    "job": '#!/bin/bash\nenv > "$HOST_DISK/environment"; echo "$@" >> "$HOST_DISK/commands"\n'
    'echo run >> "$HOST_DISK$JOB_FOLDER/runs"\n',
}


class FakeCloud:
    """The cloud's state, in a folder."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)

    def make(self, *, preempted_runs=0):
        """Makes the programs, of which the first runs on a slice end with a preemption."""
        self.path.mkdir(parents=True)
        here = pathlib.Path(__file__).parent
        program = _PROGRAM.format(python=sys.executable, helpers=str(here), folder=str(self.folder))
        self._program(self.path / "gcloud", program)
        on_host = self.folder / "on_host"
        on_host.mkdir()
        for name, text in _ON_HOST.items():
            self._program(on_host / name, text)
        for name in ("git", "env"):
            (self.path / name).symlink_to(shutil.which(name))
        (self.folder / "exports").mkdir()
        self.write({"slice": None, "buckets": {}, "preempted_runs": preempted_runs, "made": 0, "calls": []})

    @staticmethod
    def _program(path, text):
        path.write_text(text)
        path.chmod(0o755)

    @property
    def path(self):
        return self.folder / "bin"

    def read(self):
        return json.loads((self.folder / "state.json").read_text())

    def write(self, state):
        (self.folder / "state.json").write_text(json.dumps(state))

    def host(self, number):
        """Returns a host's disk."""
        return self.folder / "hosts" / str(number)


def gcloud(cloud, argv):
    """Does what a command of gcloud asks; returns its status."""
    state = cloud.read()
    state["calls"].append(argv)
    cloud.write(state)
    if argv[:2] == ["storage", "ls"]:
        return _listed(state, argv[2])
    kind, verb = argv[2:4]
    if kind == "queued-resources":
        return _resource(cloud, state, verb)
    if verb == "describe":
        sys.stdout.write("READY\n" if state["slice"] == "ACTIVE" else "PREEMPTED\n")
        return 0
    hosts = sorted((cloud.folder / "hosts").iterdir())
    if verb == "scp":
        for host in hosts:
            shutil.copy(argv[4], host / "home" / argv[5].partition(":")[2])  # with its mode, as scp has it
        return 0
    command = next(argument for argument in argv if argument.startswith("--command="))
    is_run = any(argument.startswith("--output-directory") for argument in argv)
    status = max(_on_host(cloud, host, command.removeprefix("--command=")) for host in hosts)
    if is_run and state["preempted_runs"]:
        cloud.write(state | {"slice": "SUSPENDED", "preempted_runs": state["preempted_runs"] - 1})
        return 255
    return status


def _listed(state, path):
    bucket, _, name = path.removeprefix("gs://").partition("/")
    if bucket not in state["buckets"]:
        sys.stderr.write(f"ERROR: (gcloud.storage.ls) gs://{bucket} not found: 404.\n")
        return 1
    if name and not any(one == name or one.startswith(name.rstrip("/") + "/") for one in state["buckets"][bucket]):
        sys.stderr.write("ERROR: (gcloud.storage.ls) One or more URLs matched no objects.\n")
        return 1
    return 0


def _resource(cloud, state, verb):
    if verb == "create":
        shutil.rmtree(cloud.folder / "hosts", ignore_errors=True)
        for number in range(2):
            (cloud.host(number) / "home").mkdir(parents=True)
        cloud.write(state | {"slice": "ACTIVE", "made": state["made"] + 1})
    elif verb == "delete":
        shutil.rmtree(cloud.folder / "hosts")
        cloud.write(state | {"slice": None})
    elif state["slice"] is None:
        sys.stderr.write("ERROR: (gcloud.describe) NOT_FOUND: Resource was not found\n")
        return 1
    else:
        sys.stdout.write(state["slice"] + "\n")
    return 0


def _on_host(cloud, host, script):
    environment = {
        "HOME": str(host / "home"),
        "HOST_DISK": str(host),
        "EXPORTS": str(cloud.folder / "exports"),
        "JOB_FOLDER": "/mnt/shared",
        "PATH": f"{cloud.folder / 'on_host'}:/usr/bin:/bin",
    }
    return subprocess.run(["bash", "-c", script], cwd=host / "home", env=environment).returncode
