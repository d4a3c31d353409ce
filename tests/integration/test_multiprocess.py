"""Two processes of four devices each convert what one converts, and end together when one of them can't go on.

Stated times: where a process meets an error, all exit with status 2 within seconds. Where one is killed, the others end
by themselves: at once if it was process 0, which the others listen to, and else when they have waited for it
`processes._SHUTDOWN_SECONDS`.
"""

import json
import os
import socket
import subprocess
import sys
import textwrap
import time

import converted
import paths
import patience
import pytest
import xla_flags
from hf_folders import LLAMA

from cgrpo_jax import convert

# A process's own fault: it sees no such folder, its disk is full, or it is killed while weights are written.
PROCESS = """
    import os, resource, signal, sys
    from cgrpo_jax import convert
    from cgrpo_jax.runs import cli
    from cgrpo_jax.training import checkpoint
    fault, *arguments = sys.argv[1:]
    if fault == "blind":
        arguments = [argument.replace("source", "elsewhere") for argument in arguments]
    if fault == "full":
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, resource.RLIM_INFINITY))
    if fault == "killed":
        checkpoint.save_params = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    cli.run(convert.main, flags=convert.FLAGS, argv=[*arguments, "--distributed"])
"""


def together(*arguments, faults=("", ""), usual=60):
    """Runs a command in two processes; returns for each its exit status, standard error and seconds."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = os.environ | {
        "XLA_FLAGS": xla_flags.flags(devices=4),
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "PYTHONPATH": paths.python_path(),
    }
    began = time.monotonic()
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(PROCESS), fault, *map(str, arguments)],
            env=environment | {"JAX_PROCESS_ID": str(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, fault in enumerate(faults)
    ]
    ended = []
    try:
        for process in processes:
            error = process.communicate(timeout=max(1, patience.seconds(usual) - (time.monotonic() - began)))[1]
            ended.append((process.returncode, error, time.monotonic() - began))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    return ended


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A source, and the checkpoint that one process makes of it."""
    folder = tmp_path_factory.mktemp("place")
    converted.make_folder(folder / "source", LLAMA | {"hidden_size": 16})
    convert.import_hf(folder / "source", folder / "alone")
    return folder


def test_two_convert_what_one_does(place):
    ended = together(f"--from_hf={place / 'source'}", f"--to={place / 'both'}")
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert contents(place / "both" / "model") == contents(place / "alone" / "model")
    for given in ("both", "alone"):  # in one process: the checkpoints hold the same bits
        convert.export_hf(place / given, place / f"hf-{given}" / "model")
    assert contents(place / "hf-both") == contents(place / "hf-alone")
    flags = [f"--from={place / 'both'}", f"--to_hf={place / 'exported' / 'model'}", "--max_shard_gb=0.00001"]
    ended = together(*flags)
    assert [status for status, _, _ in ended] == [0, 0], ended
    convert.export_hf(place / "alone", place / "sharded" / "model", max_shard_bytes=10_000)
    assert contents(place / "exported") == contents(place / "sharded")
    assert len(list((place / "sharded" / "model").glob("*.safetensors"))) > 1


def test_adapters(place, tmp_path):
    run = tmp_path / "run"
    converted.made_up_lora_run(run, place / "source")
    convert.export_peft(run, tmp_path / "alone" / "adapter")
    convert.export_hf(run, tmp_path / "alone" / "merged")
    ended = together(f"--from={run}", f"--to_peft={tmp_path / 'both' / 'adapter'}")
    ended += together(f"--from={run}", f"--to_hf={tmp_path / 'both' / 'merged'}")
    assert [status for status, _, _ in ended] == [0] * 4, ended
    assert contents(tmp_path / "both") == contents(tmp_path / "alone")
    assert json.loads((tmp_path / "both" / "adapter" / "adapter_config.json").read_text())["r"] == 2


@pytest.mark.parametrize(
    "faults, reason",
    [
        (("", "blind"), "config.json does not exist"),
        (("full", ""), "can't be written"),
        (("", "full"), "can't be written"),
    ],
    ids=["process 1 sees no source", "process 0 has no disk", "process 1 has no disk"],
)
def test_all_fail_where_one_does(place, faults, reason):
    ended = together(f"--from_hf={place / 'source'}", f"--to={place / 'out'}", faults=faults, usual=30)
    assert [status for status, _, _ in ended] == [2, 2], ended
    said = ["".join(line for line in error.split("\n") if line.startswith("error: ")) for _, error, _ in ended]
    failed = faults.index(next(filter(None, faults)))
    assert reason in said[failed]
    assert f"failed on process {failed}; its own message says why" in said[1 - failed]
    assert not (place / "out").exists() and not list(place.glob(".out*"))


@pytest.mark.parametrize("faults", [("killed", ""), ("", "killed")], ids=["process 0", "process 1"])
def test_none_waits_for_one_that_was_killed(place, faults):
    ended = together(f"--from_hf={place / 'source'}", f"--to={place / 'out'}", faults=faults)
    assert ended[faults.index("killed")][0] == -9
    assert ended[faults.index("")][0] not in (0, None)
    assert not (place / "out").exists()
