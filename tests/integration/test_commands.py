"""Commands as processes of their own: `cgrpo`, `python -m`, Ctrl-C while they import, another folder."""

import os
import subprocess
import sys

import paths
import pytest
from config_files import derived, write_configs

from cgrpo_jax.__main__ import COMMANDS


@pytest.fixture
def configs(tmp_path):
    return write_configs(tmp_path / "project", fast=derived("config.optimizer.learning_rate = 3e-6"))


def cgrpo(*argv, **environment):
    return subprocess.run(
        [sys.executable, "-m", "cgrpo_jax", *argv],
        env=os.environ | {"PYTHONPATH": paths.python_path()} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_ctrl_c_while_a_command_is_imported(ctrl_c, tmp_path, command):
    """A stand-in for JAX, whose import takes seconds, as it is reached by Ctrl-C there."""
    (tmp_path / "jax.py").write_text(
        "import signal\ntry:\n    signal.raise_signal(signal.SIGINT)\nexcept BaseException as error:\n"
        "    raise ImportError('Encountered an error while initializing the extension.') from error\n"
    )
    environment = os.environ | {"PYTHONPATH": paths.python_path(tmp_path)}
    for argv in (["-m", f"cgrpo_jax.{command}"], ["-m", "cgrpo_jax", command]):
        done = subprocess.run([sys.executable, *argv], env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted; nothing was begun\n")


@pytest.mark.parametrize("command", ["train", "evaluate", "diagnose", "collect", "recipe", "sample"])
def test_a_run_says_that_it_starts_before_jax_is_imported(tmp_path, command):
    """JAX takes seconds to import; its stand-in ends the process instead."""
    (tmp_path / "jax.py").write_text("raise SystemExit(7)")
    environment = os.environ | {"PYTHONPATH": paths.python_path(tmp_path)}
    for argv in (["-m", f"cgrpo_jax.{command}"], ["-m", "cgrpo_jax", command]):
        command_line = [sys.executable, *argv, "--config=c.py", "--workdir=runs/a"]
        done = subprocess.run(command_line, env=environment, cwd=tmp_path, capture_output=True, text=True)
        said = f"{command}: starting in runs/a; loading JAX and the package takes some seconds\n"
        assert (done.returncode, done.stdout, done.stderr) == (7, "", said)


def test_cgrpo_alone_lists_the_commands_and_imports_nothing_heavy(tmp_path):
    (tmp_path / "jax.py").write_text("raise SystemExit('JAX was imported')")
    for argv in ([], ["--help"]):
        done = cgrpo(*argv, PYTHONPATH=paths.python_path(tmp_path))
        assert (done.returncode, done.stderr) == (0, "")
        assert [line.split()[0] for line in done.stdout.splitlines()[2:]] == list(COMMANDS)
        assert all(len(line.split()) > 3 for line in done.stdout.splitlines()[2:])


def test_cgrpo_of_an_unknown_command():
    done = cgrpo("trian", "--config=x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(
        "error: unknown command trian (did you mean train?); commands are init, train, finetune"
    )


def test_cgrpo_runs_the_command_as_python_does():
    code = [cgrpo("convert", "--nope=1")]
    environment = os.environ | {"PYTHONPATH": paths.python_path()}
    argv = [sys.executable, "-m", "cgrpo_jax.convert", "--nope=1"]
    code.append(subprocess.run(argv, env=environment, capture_output=True, text=True))
    assert code[0].returncode == code[1].returncode == 2
    assert code[0].stderr == code[1].stderr and "unknown flag --nope" in code[0].stderr


def test_as_a_program_from_another_folder(configs, tmp_path):
    program = tmp_path / "entry.py"
    program.write_text(
        '"""Doubles the rate."""\n'
        "import sys\nfrom cgrpo_jax.runs import cli\n"
        "def main(config, workdir):\n    sys.stdout.write(f'{2 * config.optimizer.learning_rate} {workdir}')\n"
        "if __name__ == '__main__':\n    cli.run(main, require=('config', 'workdir'))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}

    def run(*argv):
        return subprocess.run(
            [sys.executable, program, *argv], cwd=tmp_path, env=environment, capture_output=True, text=True
        )

    done = run("--config=project/configs/fast.py", "--workdir=w", "--config.optimizer.learning_rate=4")
    assert (done.returncode, done.stdout, done.stderr) == (0, "8.0 w", "")
    wrong = run("--config=project/configs/fast.py", "--workdir=w", "--config.optimizer.learning_rate=four")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: --config.optimizer.learning_rate=four is not a number; it is now 3e-06\n"
    assert "Doubles the rate." in run("--help").stdout
