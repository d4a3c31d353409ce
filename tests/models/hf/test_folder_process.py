"""The process in which templates run: what comes to a limit is one error, and the next request is answered."""

import os
import pathlib
import signal

import pytest

from cgrpo_jax.models.hf.folder_process import FaultError, FolderProcess, LimitError

NOW = "2026-01-02T03:04:05"
MESSAGES = [{"role": "user", "content": "two"}]


@pytest.fixture(scope="module")
def process():
    found = FolderProcess()
    yield found
    found.close()


def render(process, source, *, most=1000, seconds=0.2, **variables):
    return process.ask("render", source, NOW, variables, MESSAGES, True, most, seconds=seconds)


def test_what_a_template_makes_and_reads(process):
    assert process.ask("compile", "{{ messages }}{{ x }}", NOW, seconds=2.0) == ["messages", "x"]
    assert render(process, "{{ messages[0].content }}{{ x }}{{ strftime_now('%Y') }}", x="\ud800") == "two\ud8002026"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 9 ** (messages | length * 3 * 10 ** 7) }}",
        "{{ (messages * 10 ** 6) | sort(attribute='content') | list | length }}",
    ],
)
def test_a_template_that_takes_too_long(process, source):
    with pytest.raises(LimitError, match=r"^takes more than 0.2 s$"):
        render(process, source)
    assert render(process, "next") == "next"


@pytest.mark.parametrize("source", ["{{ 'a' * 10 ** 10 }}", "{{ messages * 10 ** 9 }}", "{{ '%9999999999s' % 'x' }}"])
def test_a_template_that_takes_too_much_memory(process, source):
    with pytest.raises(LimitError, match="^takes more than 256 MiB of memory$"):
        render(process, source, seconds=5.0)
    assert render(process, "next") == "next"


def test_a_template_that_writes_too_much(process):
    assert render(process, "{% for m in 'abcde' %}{{ m }}{% endfor %}", most=5) == "abcde"
    for source in ("{% for m in 'abcdef' * 10 ** 6 %}{{ m }}{% endfor %}", "{{ 'abcdef' }}"):
        with pytest.raises(LimitError, match="^writes more than 5 characters$"):
            render(process, source, most=5, seconds=2.0)


def test_what_a_template_raises_is_a_line(process):
    for source, message in {
        "{{ raise_exception('no\n such role') }}": "no such role",
        "{{ ''.__class__.__mro__ }}": "unsafe",
        "{{ x.y }}": "'x' is undefined",
        "{% if %}": "line 1: Expected an expression",
        "{{ " + "(" * 5000: "RecursionError",
        "{{ raise_exception('a' * 9999) }}": "^a{500}$",
    }.items():
        with pytest.raises(FaultError, match=message):
            render(process, source, most=10, seconds=1.0)


def test_a_process_that_was_killed_is_started_again(process):
    render(process, "x")
    os.kill(process.pid, signal.SIGKILL)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert render(process, "next") == "next"


def test_it_knows_no_secret_and_ends(monkeypatch):
    monkeypatch.setenv("CRITIC_KEY", "sk-secret")
    process = FolderProcess()
    assert render(process, "x") == "x"
    folder = pathlib.Path(f"/proc/{process.pid}")
    assert b"sk-secret" not in (folder / "environ").read_bytes()
    assert os.getsid(process.pid) == process.pid  # Ctrl-C does not reach it
    process.close()
    assert not folder.exists() and process.pid is None


def test_interrupted_it_mixes_no_replies(process, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(FolderProcess, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            render(process, "first")
    assert render(process, "second") == "second"
