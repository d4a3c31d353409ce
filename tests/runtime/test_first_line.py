"""The first line of a run: said where a run starts, and nowhere else."""

import sys

import pytest

from cgrpo_jax.runtime import first_line

SAID = "train: starting in runs/a; loading JAX and the package takes some seconds\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["--workdir=runs/a"],
        ["-workdir", "runs/a"],
        ["--workdir=b", "--workdir=runs/a"],
        ["runs/a"],  # a run's folder alone
        ["--config.seed", "3", "runs/a", "--config.eval.every=2"],
    ],
)
def test_a_run_that_starts(arguments, capsys, monkeypatch):
    monkeypatch.delenv("JAX_PROCESS_ID", raising=False)
    first_line.say_start("train", [*arguments, "--config=c.py"])
    assert capsys.readouterr() == ("", SAID)


@pytest.mark.parametrize(
    "arguments",
    [[], ["--help"], ["--workdir=runs/a", "-h"], ["--config.x=workdir=y"], ["--workdir"], ["--config", "a"], [""]],
)
def test_nothing_starts(arguments, capsys):
    first_line.say_start("train", arguments)
    assert capsys.readouterr() == ("", "")


def test_process_0_alone_says_it(capsys, monkeypatch):
    for number, said in (("0", SAID), ("1", "")):
        monkeypatch.setenv("JAX_PROCESS_ID", number)
        first_line.say_start("train", ["--workdir=runs/a"])
        assert capsys.readouterr().err == said


def test_control_characters_are_not_written(capsys):
    first_line.say_start("train", ["--workdir=a\x1b[2J\udc80é"])
    assert capsys.readouterr().err.startswith("train: starting in a?[2J?\\xe9; ")


def test_where_nobody_reads_it_the_program_goes_on(monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys.stderr, "write", full)
    first_line.say_start("train", ["--workdir=runs/a"])
