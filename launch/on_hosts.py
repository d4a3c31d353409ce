"""What the hosts of a Cloud TPU slice run: they mount disks, take the code and the environment, and start the command.

A slice that is made again after a preemption has empty disks, and one whose host was started again has no mounts: so
what is mounted, and what is in the environment, is seen to before each start.
"""

import dataclasses
import os
import posixpath
import re
import shlex
from collections.abc import Mapping, Sequence

import command_line

from cgrpo_jax.errors import UserError

ARCHIVE = "cgrpo_jax.tar.gz"
ENVIRONMENT = "cgrpo.env"
PYTHON = "3.12"  # the slices' own is older than what this project needs

# What an earlier launch has left of its environment is gone, unless this one has brought its own.
INSTALL = f"""set -e
{{environment}}
if [ -d cgrpo_jax ]; then rm -r cgrpo_jax; fi
mkdir cgrpo_jax
tar -xzf {ARCHIVE} -C cgrpo_jax
python3 -m pip install --quiet --user uv
python3 -m uv venv --quiet --allow-existing --python={PYTHON} cgrpo_venv
python3 -m uv pip install --quiet --python=cgrpo_venv/bin/python -e 'cgrpo_jax[tpu,gcs]'"""

# Writes stay in order, and wait for a server that is away for a while.
_MOUNT = """command -v mount.nfs >/dev/null || sudo apt-get install --yes --quiet nfs-common >/dev/null
mounted() {
  mountpoint -q "$2" || { sudo mkdir -p "$2" && sudo mount -t nfs -o hard "$1" "$2"; } || exit 2
}
"""

# What an attempt whose connection was lost may have left running would hold the TPU. What began after its number was
# written (by more than clocks are off by) is another process, which got the number later.
_RUN = f"""cd ~/cgrpo_jax
. ~/cgrpo_venv/bin/activate
if [ -f ~/{ENVIRONMENT} ]; then . ~/{ENVIRONMENT}; fi
if [ -s ~/cgrpo.pid ]; then
  left=$(cat ~/cgrpo.pid)
  written=$(($(date +%s) - $(date -r ~/cgrpo.pid +%s)))
  age=$(ps -o etimes= -p "$left") || age=-1
  if [ "$age" -ge $((written - 5)) ] && kill -s TERM "$left" 2>/dev/null; then
    timeout 600 tail --pid="$left" -f /dev/null
  fi
fi
echo $$ > ~/cgrpo.pid
export CGRPO_STOPPED_STATUS={command_line.STOPPED_STATUS}
exec """


@dataclasses.dataclass(frozen=True)
class Mount:
    """A folder of a file server, such as Filestore's, and where all hosts have it."""

    source: str
    target: str


def mounts(text: str) -> list[Mount]:
    """Returns the mounts of a flag, SERVER:/EXPORT=/PATH, several with commas between.

    Raises:
      UserError: it names none.
    """
    found = []
    for one in [one for one in text.split(",") if one]:
        source, _, target = one.rpartition("=")
        if source.startswith("gs://"):
            raise UserError(f"--mount={one}: a bucket needs no mount; give its gs:// path in the command")
        if not re.fullmatch(r"[A-Za-z0-9.-]+:/[\w./-]*", source) or not re.fullmatch(r"/[\w-][\w./-]*", target):
            raise UserError(f"--mount={one} is none; write SERVER:/EXPORT=/PATH, such as 10.0.0.2:/share=/mnt/shared")
        found.append(Mount(source, posixpath.normpath(target)))
    return found


def environment(text: str, here: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Returns the variables of a flag: NAME, which has its value here, or NAME=VALUE; several with commas between.

    Raises:
      UserError: it names none, or one that is not set here.
    """
    found = {}
    for one in [one for one in text.split(",") if one]:
        name, equals, value = one.partition("=")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"--env: {name!r} can't name a variable; write NAME, or NAME=VALUE")
        if not equals and name not in here:
            raise UserError(f"--env={name}: there is no such variable here; set it, or write {name}=VALUE")
        found[name] = value if equals else here[name]
    return found


def check_unassigned(command: Sequence[str]) -> None:
    """Raises a `UserError` if a command begins with variables, which would be printed, and kept in logs.

    Example: ["env", "HF_TOKEN=...", "python", "-m", "cgrpo_jax.train"].
    """
    first = next((word for word in command if word != "env"), "")
    if match := re.match(r"([A-Za-z_][A-Za-z0-9_]*)=", first):
        raise UserError(f"{match[1]}=... before the command would be printed and logged; give --env={match[1]}")


def environment_file(variables: Mapping[str, str]) -> str:
    """Returns what a host's shell reads to have variables."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in variables.items())


def install_script(*, with_environment: bool) -> str:
    """Returns what installs the code that was shipped."""
    return INSTALL.format(environment=f"chmod 600 {ENVIRONMENT}" if with_environment else f"rm -f {ENVIRONMENT}")


def run_script(command: Sequence[str], disks: Sequence[Mount] = ()) -> str:
    """Returns what starts a command."""
    lines = [f"mounted {shlex.quote(one.source)} {shlex.quote(one.target)}\n" for one in disks]
    return (_MOUNT + "".join(lines) if lines else "") + _RUN + shlex.join(command)
