"""What `sample` reads and prints, without a model."""

import io
import sys

import pytest

from cgrpo_jax import sample
from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import text, watchdog


def test_a_line_that_is_no_text_is_refused_and_the_next_one_read(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"2+2\n\n2+\xff\ncaf\xc3\xa9\n"), encoding="utf-8"))
    lines = list(sample._lines())
    assert lines[0] == "2+2" and lines[2] == "café"
    with pytest.raises(UserError, match=r"the question is not valid Unicode: character 3 of 3 is U\+DCFF"):
        text.check(lines[1], "the question")


def test_what_a_model_wrote_is_printed_without_control_characters(capsys):
    sample._print("response", "two\nlines\x1b[2J \u202e\rdone\ud800", "reward 1")
    assert capsys.readouterr().out == "response (reward 1):\ntwo\nlines\\x1b[2J \\u202e\\rdone\\ud800\n\n"


def test_whoever_asks_may_take_any_time(monkeypatch):
    monkeypatch.setattr(watchdog, "_limits", watchdog.Limits(stall=1.0, compile=1.0))
    seen = []

    class Terminal(io.StringIO):
        def readline(self, *_):
            seen.append(watchdog._limits)
            return super().readline()

    monkeypatch.setattr(sys, "stdin", Terminal("2+2\n"))
    for line in sample._lines():
        assert line == "2+2" and watchdog._limits.stall == 1.0
    assert seen == [watchdog.Limits(0.0, 0.0)] * 2
