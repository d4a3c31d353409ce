"""Command lines that `train` refuses, and folders that are spoilt."""

import json
import pathlib

import pytest
import start_lines
import tiny_run

from cgrpo_jax import train
from cgrpo_jax.runs import cli


def refused(capsys, workdir, changes=None, /, **more):
    """Returns the one line on stderr by which `train` refuses a command line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.run(train.main, require=("config", "workdir"), argv=tiny_run.arguments(workdir, changes, **more))
    out, err = capsys.readouterr()
    err = start_lines.without(err)
    assert caught.value.code == 2
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and len(err) < 600
    return err


def write(path: pathlib.Path, *rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def jsonl(path: pathlib.Path, **more) -> dict:
    return {
        "data.kind": "jsonl",
        "data.train": str(path),
        "critique.step_checker": "equations",
        "grader.kind": "numeric",
    } | more


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def corrupt(checkpoint):
    """Cuts every file of the weights in half, as a full disk would."""
    files = [path for path in (checkpoint / "params").rglob("*") if path.is_file() and path.stat().st_size > 1000]
    assert files
    for path in files:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
