import ast
import errno
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import jax
import pytest
from config_files import derived, write_configs

import cgrpo_jax
from cgrpo_jax import plan
from cgrpo_jax.__main__ import COMMANDS
from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import cli, keys
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runtime import console, processes, signals

PACKAGE = pathlib.Path(cgrpo_jax.__file__).parent


@pytest.fixture
def configs(tmp_path):
    return write_configs(tmp_path / "project", fast=derived("config.optimizer.learning_rate = 3e-6"))


def call(argv, main=None, **kwargs):
    """Runs a main that records what it was given."""
    given = []
    cli.run(main or (lambda **values: given.append(values)), argv=argv, **kwargs)
    return given[0]


def one_line_error(capsys, argv, main=None, **kwargs):
    with pytest.raises(SystemExit) as caught:
        call(argv, main, **kwargs)
    out, err = capsys.readouterr()
    assert caught.value.code == 2
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and err.endswith("\n")
    return err


def test_main_gets_the_config_with_its_overrides_and_the_workdir(configs):
    given = call(
        [f"--config={configs / 'fast.py'}", "--workdir", "runs/a", "--config.num_responses=4"],
        require=("config", "workdir"),
    )
    assert given["workdir"] == "runs/a"
    assert (given["config"].optimizer.learning_rate, given["config"].num_responses) == (3e-6, 4)
    with pytest.raises(AttributeError):
        given["config"].seed = 1


def test_overrides_may_stand_before_the_config(configs):
    given = call(["--config.optimizer.learning_rate=1", f"--config={configs / 'fast.py'}"], require=("config",))
    assert given["config"].optimizer.learning_rate == 1.0


def test_extra_flags_defaults_keywords_and_positional_arguments():
    flags = {"from": cli.Flag("source"), "json": cli.Flag("as JSON", bool, False), "rows": cli.Flag("rows", int, 3)}
    given = call(
        ["prepare", "--from=x", "--json", "gsm8k"], require=("from",), flags=flags, arguments=("action", "name")
    )
    assert given == {"from_": "x", "json": True, "rows": 3, "action": "prepare", "name": "gsm8k"}


def test_the_last_positional_argument_may_be_given_several_times(capsys):
    arguments = {"flags": {"out": cli.Flag("a page")}, "arguments": ("kind", "runs"), "several": True}
    assert call(["a", "x", "--out=p", "y"], **arguments) == {"out": "p", "kind": "a", "runs": ["x", "y"]}
    assert call(["a", "x"], **arguments)["runs"] == ["x"]
    assert "got a, expected KIND RUNS ...; see --help" in one_line_error(capsys, ["a"], **arguments)


def test_config_may_be_optional(configs):
    assert call([], flags={"config": cli.CONFIG}) == {"config": None}
    assert (
        call([f"--config={configs / 'fast.py'}"], flags={"config": cli.CONFIG})["config"].optimizer.learning_rate
        == 3e-6
    )


@pytest.mark.parametrize(
    "argv, expected",
    [
        (["--workdir={w}"], "missing --config: there is no run in {w} (no config.json), whose configuration could be"),
        (
            [],
            "missing --config and --workdir; the folder of a run is enough: --workdir=RUN; flags are --config, "
            "--workdir, --config.KEY=VALUE, --help",
        ),
        (["{w}"], "there is no run in {w} (no config.json); give the folder of a run, or --config and --workdir."),
        (["{w}", "{w}"], "missing --config and --workdir"),
        (["--config={c}"], "missing --workdir"),
        (["--config={c}", "--workdir="], "missing --workdir"),
        (["--config={c}", "--workdir"], "Missing value for flag --workdir"),
        (["--config={c}", "--wrokdir={w}"], "unknown flag --wrokdir (did you mean --workdir?)"),
        (["--confg={c}", "--workdir={w}"], "unknown flag --confg (did you mean --config?)"),
        (["--config={c}", "--workdir={w}", "-x"], "unknown flag --x"),
        (["--config={c}", "--workdir={w}", "--undefok=x", "--x=1"], "unknown flag --undefok"),
        (["--config={c}", "--workdir={w}", "extra"], "positional arguments: got extra, expected none"),
        (["--config={c}", "--workdir={w}", "--", "extra"], "positional arguments: got"),
        (
            ["--config={c}", "--workdir={w}", "--config.objective.gamma=abc"],
            "--config.objective.gamma=abc is not a number",
        ),
        (["--config={c}", "--workdir={w}", "--config.num_responses=1.5"], "is not an int"),
        (["--config={c}", "--workdir={w}", "--config.sead=1"], "did you mean --config.seed?"),
        (["--config={c}x", "--workdir={w}"], "does not exist"),
        (["--config={b}", "--workdir={w}"], "fails to load: RuntimeError: two lines"),
        (["--config={c}", "--workdir={w}", "--rows=many"], "--rows=many is not an int"),
    ],
)
def test_mistakes_are_one_line_and_main_never_runs(configs, tmp_path, capsys, argv, expected):
    (configs / "bad.py").write_text("raise RuntimeError('two\\nlines')")
    names = {"c": configs / "fast.py", "b": configs / "bad.py", "w": tmp_path / "run"}
    argv = [argument.format(**names) for argument in argv]
    flags = {"rows": cli.Flag("number of rows", int, 1)}
    expected = expected.replace("--config.KEY", "--rows, --config.KEY").replace("{w}", str(names["w"]))
    ran = []
    error = one_line_error(
        capsys, argv, lambda **values: ran.append(values), require=("config", "workdir"), flags=flags
    )
    assert expected in error
    assert not ran
    assert not (tmp_path / "run").exists()


def test_what_is_true_by_default_is_switched_off(capsys):
    flags = {"costs": cli.Flag("say what fits alone", bool, True), "loud": cli.Flag("say more", bool, False)}
    assert call([], flags=flags) == {"costs": True, "loud": False}
    assert call(["--nocosts", "--loud"], flags=flags) == {"costs": False, "loud": True}
    error = one_line_error(capsys, ["--no_costs"], lambda **_: None, flags=flags)
    assert "unknown flag --no_costs (did you mean --nocosts?); flags are --nocosts, --loud, --help" in error


def test_config_overrides_are_unknown_flags_where_there_is_no_config(capsys):
    assert "unknown flag --config.lr" in one_line_error(capsys, ["--config.lr=1"], flags={"to": cli.Flag("target")})
    assert "unknown flag --no" in one_line_error(capsys, ["--no"], flags={"to": cli.Flag("target")})


def test_user_error_of_main_is_one_line(capsys):
    def main():
        raise UserError("minibatch_size 48 does not\n divide 128; use 32 or 64")

    assert one_line_error(capsys, [], main) == "error: minibatch_size 48 does not divide 128; use 32 or 64\n"


def test_a_bug_keeps_its_stack_trace():
    def main():
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        cli.run(main, argv=[])


INTERRUPTED = "interrupted; the same command starts again, or resumes from what was written\n"


@pytest.mark.parametrize("becomes", [KeyboardInterrupt, ImportError, UserError])
def test_ctrl_c_exits_130_with_one_line(ctrl_c, capsys, becomes):
    """An extension module that it reaches at its import raises an `ImportError`, of which we may make our own."""

    def main():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as error:
            raise becomes("initializing the extension") from error

    signals.end_while_importing()
    with pytest.raises(SystemExit) as caught:
        cli.run(main, argv=[])
    assert caught.value.code == 130
    assert capsys.readouterr().err == INTERRUPTED
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_other_errors_stay_what_they_are_and_ctrl_c_stays_ignored(ctrl_c):
    def main():
        signal.raise_signal(signal.SIGINT)
        raise ImportError("not installed")

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with pytest.raises(ImportError, match="not installed"):
        cli.run(main, argv=[])


def test_the_package_does_nothing_with_signals_and_arguments_when_it_is_imported():
    """Whatever a module does with them it does in a function, or where it is run as a program."""
    for path in sorted(PACKAGE.rglob("*.py")):
        body = [n for n in ast.parse(path.read_text()).body if "__name__ == '__main__'" not in ast.unparse(n)]
        now = [n for n in body if not isinstance(n, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef)]
        for node in now:
            assert not re.search(r"\b(orig_)?argv\b|signal\.signal\(|end_while_importing", ast.unparse(node)), path


def test_the_commands_are_the_modules_that_run_as_programs():
    files = {path.stem for path in PACKAGE.glob("*.py") if "\n    cli.run(" in path.read_text()}
    files |= {path.parent.name for path in PACKAGE.glob("*/__main__.py")}  # rooms that are commands
    assert files == set(COMMANDS)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_help_names_every_flag_and_every_key_by_section(capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: None, require=("config",), flags={"to": cli.Flag("target", str, "out")}, argv=["--help"])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    for text in ("usage: python test_cli.py --config=...", "[--to=...]", "target (default: out)"):
        assert text in out
    lines = out.splitlines()
    named = [line.split()[0] for line in lines if re.match(r"  [a-z][\w.]* = ", line)]
    assert sorted(named) == sorted(name for name, _, _ in keys.items(Config()))
    for text in ("  objective.gamma = 0.1", "sampling: How the stages of an iteration draw tokens.", "  seed = 0"):
        assert text in lines
    assert all(len(line) <= width for line in lines if line.startswith("      "))


def test_help_of_a_command_is_called_as_the_command_is(capsys):
    with pytest.raises(SystemExit):
        cli.run(plan.main, require=("config", "topology"), flags=plan.FLAGS, argv=["--help"])
    assert capsys.readouterr().out.startswith("usage: cgrpo plan --config=... --topology=... [--json=...] [--nocosts] ")
    with pytest.raises(SystemExit):
        cli.run(plan.main, require=("config", "workdir"), argv=["--help"])
    assert capsys.readouterr().out.startswith(
        "usage: cgrpo plan [--config=...] --workdir=... [--config.KEY=VALUE ...]\n"
    )


def test_help_without_a_configuration_lists_no_keys(capsys):
    with pytest.raises(SystemExit):
        cli.run(lambda: None, flags={"to": cli.Flag("target", str, "out")}, argv=["--help"])
    assert "objective" not in capsys.readouterr().out


def test_old_flags_are_hinted_at_and_several_mistakes_printed(configs, capsys):
    given = call([f"--config={configs / 'fast.py'}", "--config.gamma=0.3"], require=("config",))
    assert given["config"].objective.gamma == 0.3
    assert capsys.readouterr().err == "--config.gamma is now --config.objective.gamma\n"


@pytest.mark.parametrize("argument", ["--workdir=runs/\udcff", "--question=\ud83d", "caf\udce9"])
def test_an_argument_that_is_no_text_is_refused(capsys, argument):
    """A byte that is no UTF-8 arrives as half of a surrogate pair."""
    error = one_line_error(capsys, [argument], require=("workdir",), flags={"question": cli.Flag("it")})
    assert "is not valid Unicode: character" in error and error.isascii()


def test_a_mistake_is_shown_without_control_characters(capsys):
    def main():
        raise UserError("row 1 says '\x1b[2J\u202e\rgood\ud800'; fix it")

    assert one_line_error(capsys, [], main) == "error: row 1 says '\\x1b[2J\\u202e good\\ud800'; fix it\n"

    def several():
        raise keys.ConfigErrors("2 problems", ["a\x07 is wrong", "b\n\x9b is"])

    with pytest.raises(SystemExit):
        call([], several)
    assert capsys.readouterr().err == "error: 2 problems:\n  a\\x07 is wrong\n  b \\x9b is\n"


@pytest.mark.parametrize("kind", [ValueError, jax.errors.JaxRuntimeError, OSError])
def test_another_process_that_is_gone_is_one_line(capsys, kind):
    """Whatever of JAX or of a library meets it first, and what they raise after it."""
    said = "UNKNOWN: Gloo AllGather failed: [pair.cc:538] Read error [127.0.0.1]:62113: Connection reset by peer\nmore"

    def main():
        try:
            raise kind(said)
        except kind as error:
            raise RuntimeError("could not be saved") from error

    error = one_line_error(capsys, [], main)
    assert error.startswith("error: another process has ended (UNKNOWN: Gloo AllGather failed: ")
    assert error.endswith("Connection reset by peer); its own message says why.\n")
    with pytest.raises(ValueError, match="^Gloo is a game$"):
        call([], lambda: (_ for _ in ()).throw(ValueError("Gloo is a game")))


@pytest.mark.parametrize("argv", [[], ["--help"]])
@pytest.mark.parametrize("unbuffered", [False, True])
def test_output_on_a_full_disk_is_one_line(monkeypatch, capsys, unbuffered, argv):
    """When it is written, as Python does with PYTHONUNBUFFERED=1 and of long texts, or at the end."""

    def say():
        console.say("result", sys.stdout)
        assert not unbuffered

    with open("/dev/full", "w") as full, pytest.raises(SystemExit) as caught:
        full.reconfigure(write_through=unbuffered, line_buffering=unbuffered)
        monkeypatch.setattr(sys, "stdout", full)
        cli.run(say, argv=argv)
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: standard output can't be written: the disk is full;") and said.count("\n") == 1


def test_a_line_that_nobody_reads_ends_nothing(monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for stream in (Full(), None):
        monkeypatch.setattr(sys, "stderr", stream)
        console.say("said")
        with console.progress_bar(total=2, desc="shown") as bar:
            bar.update()
            bar.refresh()
    monkeypatch.setattr(sys, "stderr", Full())
    with pytest.raises(SystemExit) as caught:
        cli.run(lambda: None, argv=["--nothing"])
    assert caught.value.code == 2


def test_closed_standard_streams_lead_nowhere(tmp_path):
    program = """
import sys
from cgrpo_jax.runtime import signals

signals.end_while_importing()
with open(sys.argv[1], "w") as file:
    print("out")
    sys.stderr.write("err")
    file.write(f"{file.fileno() > 2} {sys.stdin.read()!r}")
"""
    path = tmp_path / "file"
    shell = '"$0" -c "$1" "$2" <&- >&- 2>&-'
    root = str(PACKAGE.parent)
    done = subprocess.run(["sh", "-c", shell, sys.executable, program, str(path)], env={"PYTHONPATH": root})
    assert (done.returncode, path.read_text()) == (0, "True ''")


# --- the folder of a run is enough --------------------------------------------------------------------------------


@pytest.fixture
def a_run(tmp_path):
    """A folder as a run leaves it, with a value of its own for some keys."""
    folder = tmp_path / "a_run"
    folder.mkdir()
    config = config_lib.replaced(Config(), {"lora.rank": 4, "lora.targets": ("q",), "objective.gamma": 0.3})
    (folder / "config.json").write_text(json.dumps(config_lib.to_json(config)))
    return folder


@pytest.mark.parametrize("form", [["--workdir={}"], ["--workdir", "{}"], ["{}"]])
def test_the_folder_of_a_run_is_enough(a_run, form):
    argv = [part.format(a_run) for part in form]
    for more in (["--config.num_responses", "4"], ["--config.num_responses=4"]):
        for given in (
            call([*argv, *more], require=("config", "workdir")),
            call([*more, *argv], require=("config", "workdir")),
        ):
            config = given["config"]
            assert given["workdir"] == str(a_run) and config.num_responses == 4
            assert (config.lora.rank, config.lora.targets, config.objective.gamma) == (4, ("q",), 0.3)


def test_a_file_is_read_in_the_place_of_the_runs_configuration(a_run, configs):
    argv = [f"--workdir={a_run}", f"--config={configs / 'fast.py'}"]
    given = call(argv, require=("config", "workdir"))
    assert (given["config"].lora.rank, given["config"].optimizer.learning_rate) == (0, 3e-6)


def test_a_program_without_a_configuration_takes_no_run(capsys, a_run):
    assert "positional arguments: got" in one_line_error(capsys, [str(a_run)], flags={"workdir": cli.WORKDIR})
    error = one_line_error(
        capsys, [str(a_run)], require=("config", "topology"), flags={"topology": cli.Flag("a slice")}
    )
    assert error.startswith("error: missing --config and --topology; flags are")


# --- hints --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argument, meant",
    [
        ("--num_iterations=3", "--config.num_iterations=3"),
        ("--num_iterations", "--config.num_iterations"),
        ("--learning_rate=1e-5", "--config.optimizer.learning_rate=1e-5"),
        ("--lr=1e-5", "--config.optimizer.learning_rate=1e-5"),
        ("--objective.gamma=1", "--config.objective.gamma=1"),
        ("--gamma=1", "--config.objective.gamma=1"),
        ("--num_generations=8", "--config.num_responses=8"),
        ("--output_dir=runs/a", "--workdir=runs/a"),
        ("--actor_rollout_ref.rollout.n=8", "--config.num_responses=8"),
        ("--num_iteration=3", "--config.num_iterations=3"),
    ],
)
def test_a_key_without_its_prefix_and_names_of_other_libraries_are_hinted_at(capsys, argument, meant):
    error = one_line_error(capsys, [argument], require=("config", "workdir"))
    assert error.startswith(f"error: unknown flag {argument.partition('=')[0]} (did you mean {meant}?); flags are ")


# --- keys that nothing reads --------------------------------------------------------------------------------------


def test_keys_that_the_configuration_ignores_are_refused_together(configs, capsys):
    argv = [f"--config={configs / 'fast.py'}", "--config.refine.kind=none", "--config.objective.gamma=0.2"]
    error = one_line_error(capsys, argv, require=("config",))
    assert error == (
        "error: objective.gamma 0.2 changes nothing while refine.kind is 'none'; leave it out, or set refine.kind.\n"
    )
    with pytest.raises(SystemExit):
        call([*argv, "--config.lora.targets=q,v_proj"], require=("config",))
    assert capsys.readouterr().err == (
        "error: 2 keys that nothing reads:\n"
        "  objective.gamma 0.2 changes nothing while refine.kind is 'none'; leave it out, or set refine.kind.\n"
        "  lora.targets ('q', 'v_proj') changes nothing while lora.rank is 0; leave it out, or set lora.rank.\n"
    )
    # What asks for nothing, and what the file says, is not refused.
    assert call([*argv[:2], "--config.objective.gamma=0.1"], require=("config",))
    (configs / "fast.py").write_text(derived("config.objective.gamma = 0.2"))
    assert call(argv, require=("config",))["config"].objective.gamma == 0.2
    assert call([argv[0], *argv[2:], "--config.objective.gamma=0.3"], require=("config",))


def test_keys_that_training_alone_reads_are_refused_elsewhere(a_run, configs, capsys):
    argv = [f"--workdir={a_run}", "--config.optimizer.learning_rate=1e-3"]
    error = one_line_error(capsys, argv, require=("config", "workdir"), trains=False)
    assert error == ("error: optimizer.learning_rate 0.001 changes nothing: training alone reads it; leave it out.\n")
    assert call(argv, require=("config", "workdir"))
    # With a file they may be the flags that the run was started with.
    assert call([*argv, f"--config={configs / 'fast.py'}"], require=("config", "workdir"), trains=False)


@pytest.mark.parametrize(
    "argv, raised, words, joins",
    [
        ([], UserError("no such file"), "no such file", None),
        (["--distributed"], UserError("no such file"), "no such file", True),
        ([], KeyError("bug"), "KeyError: 'bug'", False),
    ],
)
def test_why_a_process_ends_is_said_to_the_others(monkeypatch, capsys, argv, raised, words, joins):
    said = []
    monkeypatch.setattr(processes, "tell_others", lambda mistake, *, joins=None: said.append((mistake, joins)))

    def main(**_):
        raise raised

    with pytest.raises(SystemExit if isinstance(raised, UserError) else KeyError):
        call(argv, main, flags={"distributed": cli.DISTRIBUTED})
    assert said == [(words, joins)]


def test_one_that_works_alone_tells_nobody(monkeypatch):
    monkeypatch.delenv("JAX_NUM_PROCESSES", raising=False)
    monkeypatch.setattr(processes, "_join", lambda *_: pytest.fail("it joins others"))
    processes.tell_others("no such file")
    processes.tell_others("KeyError: 'bug'", joins=False)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    monkeypatch.delenv("JAX_COORDINATOR_ADDRESS", raising=False)
    processes.tell_others("no such file")
