"""What `sample` reads and prints, without a model."""

import io
import sys
import types

import pytest
from scripted_rollouts import INDICATIVE, PROBLEMS, TOKENIZER, ScriptedGenerator

from cgrpo_jax import rollout, sample
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.orchestrator import Orchestrator
from cgrpo_jax.records import Author
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


@pytest.mark.parametrize("corruption", ["none", "inverted"])
def test_what_the_refinement_sees_is_printed_where_it_is_not_the_critique(corruption, monkeypatch, capsys):
    monkeypatch.setattr(sample, "_score", lambda row, *_: (row.replace(reward=0.0), "reward 0"))
    opened = types.SimpleNamespace(
        settings=types.SimpleNamespace(method=rollout.Method(num_responses=1, max_length=32)),
        grader=types.SimpleNamespace(takes_groups=lambda: False),
        model=types.SimpleNamespace(tokenizer=TOKENIZER),
    )
    policy = ScriptedGenerator("56", author=Author.POLICY)
    critic = rollout.Critic("indicative", corruption=corruption)
    sample._stages(opened, policy, critic, PROBLEMS[0], lambda stage: Orchestrator().run([stage])[0])
    out = capsys.readouterr().out
    assert f"critique (rule):\n{INDICATIVE}\n" in out
    seen = "what the refinement sees of it (wrong on purpose, by critique.corruption):\nThe answer is right."
    assert (seen in out) == (corruption == "inverted") and ("what the refinement" in out) == (seen in out)
