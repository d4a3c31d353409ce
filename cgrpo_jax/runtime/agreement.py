"""Processes compare what they start with before they work: one that differs would train on, or hang, without a word.

    agreement.check_same("configuration", {"sampling.temperature": 0.5, "seed": 0})
    UserError: the processes differ: sampling.temperature is 0.5 on process 1, 1.0 on process 0; give all the same.

It goes through the key-value store (key_values.py), since collective operations need processes that are alike already.
"""

import collections
import contextlib
import hashlib
import importlib.metadata
import json
import pathlib
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax

import cgrpo_jax
from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import key_values, places

WAIT_SECONDS = 300  # that the slowest process may come later than the first, as when its disk is slow
_SEEN_SECONDS = 10  # in which a shared disk shows a new file to all
_LOOK_SECONDS = 0.05
_MOST_NAMED = 4  # differences, and processes of one value
_LONGEST = 60  # characters of a value
# What XLA's programs depend on besides what is compared by itself.
_JAX_OPTIONS = (
    "jax_platforms",
    "jax_enable_x64",
    "jax_default_matmul_precision",
    "jax_default_prng_impl",
    "jax_threefry_partitionable",
    "jax_numpy_dtype_promotion",
)
_LIBRARIES = (
    "jax",
    "jaxlib",
    "libtpu",
    "jinja2",
    "math-verify",
    "numpy",
    "optax",
    "orbax-checkpoint",
    "sentencepiece",
    "sympy",
    "tokenizers",
)
_exchanged: collections.Counter[str] = collections.Counter()


def exchange(name: str, value: Any) -> list:
    """Returns what every process gives, a JSON value, in the order of the processes; all must call this together.

    Args:
      name: what is exchanged, for the message.
      value: of this process.

    Raises:
      UserError: a process has ended with a mistake, or does not come.
    """
    here, number = key_values.place()
    if number == 1:
        return [json.loads(json.dumps(value))]
    _exchanged[name] += 1
    try:
        return _exchange(f"{name}/{_exchanged[name]}", name, value, here, number)
    except jax.errors.JaxRuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise UserError(f"process 0 has ended ({first[:160]}); its own message says why.") from error


def _exchange(key: str, name: str, value: Any, here: int, number: int) -> list:
    key_values.put(key, value)
    deadline = time.monotonic() + WAIT_SECONDS
    while True:
        found = key_values.read(key)
        if len(found) == number:
            return [found[process] for process in range(number)]
        ended = key_values.read(key_values.ENDED)
        ended.pop(here, None)
        if ended:
            raise UserError(why_ended(ended))
        if time.monotonic() > deadline:
            missing = _processes([process for process in range(number) if process not in found])
            raise UserError(
                f"{missing} did not give its {name} in {WAIT_SECONDS} s; start all processes with the same command."
            )
        time.sleep(_LOOK_SECONDS)


def why_ended(ended: Mapping[int, str]) -> str:
    """Returns one line of what processes have said before they ended."""
    first = min(ended)
    return f"{_processes(sorted(ended))} ended: {ended[first]}"


def check_same(name: str, values: Mapping[str, Any]) -> None:
    """Refuses, on all processes alike, to go on where they give other values; all must call this together.

    Args:
      name: what is compared, for messages.
      values: JSON values by what is said of them; one that is missing on a process counts as "absent".

    Raises:
      UserError: they differ, or as for `exchange`.
    """
    if found := differences(exchange(name, values)):
        more = f"; {len(found) - _MOST_NAMED} more" if len(found) > _MOST_NAMED else ""
        raise UserError(f"the processes differ: {'; '.join(found[:_MOST_NAMED])}{more}; give all the same.")


def differences(values: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a phrase for each name whose values are not the same on all processes, the rarer value first.

    Example:
      >>> differences([{"seed": 0}, {"seed": 1}])
      ['seed is 1 on process 1, 0 on process 0']
    """
    found = []
    for name in dict.fromkeys(name for one in values for name in one):
        holders: dict[str, list[int]] = {}
        for process, one in enumerate(values):
            text = json.dumps(one[name], sort_keys=True) if name in one else ""
            holders.setdefault(text, []).append(process)
        if len(holders) > 1:
            rarest = sorted(holders.items(), key=lambda item: (len(item[1]), -item[1][0]))
            said = [f"{_shown(text)} on {_processes(which)}" for text, which in rarest]
            more = f", {len(said) - _MOST_NAMED} more values" if len(said) > _MOST_NAMED else ""
            found.append(f"{name} is {', '.join(said[:_MOST_NAMED])}{more}")
    return found


def _shown(text: str) -> str:
    if not text:
        return "absent"
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}... (hash {hashlib.sha256(text.encode()).hexdigest()[:8]})"


def _processes(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"process {numbers[0]}"
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return f"processes {', '.join(map(str, numbers[:_MOST_NAMED]))}{more}"


# --- what all processes start with --------------------------------------------------------------------------------


def check_programs(command: Mapping[str, Any]) -> None:
    """Checks that all processes run the same command with the same code, and then on as many devices of one kind.

    Args:
      command: what is run, and the flags that matter, by what is said of them; None and False: not given.

    Raises:
      UserError: they do not.
    """
    options = {name: getattr(jax.config, name) for name in _JAX_OPTIONS if hasattr(jax.config, name)}
    _, number = key_values.place()
    given = {name: value for name, value in command.items() if value not in (None, False)}
    started = {**given, "the number of processes": number, **_versions(), **options}
    check_same("command", started)
    local = jax.local_devices()
    kinds = sorted({f"{device.platform} {device.device_kind}" for device in local})
    check_same("devices", {"the number of its devices": len(local), "their kind": ", ".join(kinds)})


def _versions() -> dict[str, str]:
    """Returns the versions of what texts, grades and updates depend on: the package's by what its files hold."""
    folder = pathlib.Path(cgrpo_jax.__file__).parent
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        whole.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    found = {"the code of cgrpo_jax": f"{cgrpo_jax.__version__} ({whole.hexdigest()[:8]})"}
    found["the version of Python"] = ".".join(map(str, sys.version_info[:2]))
    for name in _LIBRARIES:
        try:
            found[f"the version of {name}"] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[f"the version of {name}"] = "none"
    return found


# --- a folder that all see ----------------------------------------------------------------------------------------


def check_shared(folder: str | pathlib.Path, *, flag: str) -> None:
    """Checks that a folder, which need not be there yet, is the same one for all: a file of process 0 is seen by all.

    It may be mounted under other names. Nothing stays of the file.

    Args:
      folder: as this process calls it.
      flag: by which it was given, for messages.

    Raises:
      UserError: it is not, or process 0 can't write there.
    """
    if key_values.place()[1] == 1:
        return
    path = places.place(folder).resolve()
    with _probe(path, folder, flag) as said:
        first = exchange(f"{flag} of process 0", said)[0]
        if first["fault"]:
            raise UserError(first["fault"])
        there = len(path.parts) - first["missing"]  # parts of the folder in which the file lies
        name = "/".join(path.parts[there:])
        seen = _appears(type(path)(*path.parts[:there]) / first["file"])
        found = exchange(flag, [seen and name, str(folder)])
    others = [process for process, (seen, _) in enumerate(found) if seen != found[0][0]]
    if others:
        raise UserError(
            f"{flag} {found[others[0]][1]} on {_processes(others)} is not the folder that process 0 calls "
            f"{found[0][1]}; give all of them one folder, on a disk that they share."
        )


@contextlib.contextmanager
def _probe(path: pathlib.Path, given: str | pathlib.Path, flag: str) -> Iterator[dict[str, Any]]:
    """Makes a file in a folder, or the nearest one above it that is there; gives what process 0 says of it."""
    if key_values.place()[0] != 0:
        yield {}
        return
    # In a bucket a file may lie anywhere.
    where = path if places.is_bucket(path) else next(one for one in (path, *path.parents) if one.is_dir())
    file, fault = where / f".shared-{secrets.token_hex(8)}", ""
    try:
        file.touch()
    except OSError as error:
        fault = f"{flag} {given} can't be written ({error}); give another {flag}."
    try:
        yield {"file": file.name, "missing": len(path.parts) - len(where.parts), "fault": fault}
    finally:
        if not fault:
            file.unlink(missing_ok=True)


def _appears(path: pathlib.Path) -> bool:
    deadline = time.monotonic() + _SEEN_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True
