"""The judge with and without its evidence, on a few programs, with a judge that believes what it is shown."""

import json
import re

import chat_server
import failing_snippets
import judge_evidence
import pytest
from chat_server import good

from cgrpo_jax.rewards.grader import Grader

server = chat_server.server  # the fixture


def believe(handler):
    """Says yes to all programs, but where one was run, no to those of which a call returns another value than asked."""
    prompt = handler.body["messages"][0]["content"]
    if "Write at most" in prompt:
        handler.send(good("clamp(12, 1, 9)\nclamp(0, 1, 9)"))
    elif "this came of it" in prompt:
        wrong = re.findall(r"^clamp\(12, 1, 9\) returns (?!9$).*$|^clamp\(0, 1, 9\) returns (?!1$).*$", prompt, re.M)
        line = wrong[0] if wrong else "clamp(12, 1, 9) returns"
        handler.send(good(f"Quote: {line}\nVerdict: {'no' if wrong else 'yes'}"))
    else:
        handler.send(good("1: yes"))


@pytest.fixture
def few(monkeypatch):
    """The programs of one task."""
    first = failing_snippets.right()[:1]
    monkeypatch.setattr(failing_snippets, "right", lambda: first)


def test_evidence_shows_what_looks_right_and_fails_and_nothing_is_asked_twice(few, server, tmp_path, capsys):
    server.reply = believe
    command = [f"--url={server.url}", "--model=m", f"--json={tmp_path}/out.jsonl", "--snippets=1", "--concurrency=2"]
    assert judge_evidence.main(command) == 0
    out = capsys.readouterr().out + (tmp_path / "out.jsonl").read_text()  # with the reasons, should it fail
    assert "| plain | fail | 1 | 0 | 1 (100%) |" in out and "| plain | right | 1 | 0 | 0 (0%) |" in out
    assert "| evidence | fail | 1 | 0 | 0 (0%) |" in out and "| evidence | right | 1 | 0 | 0 (0%) |" in out
    failed = (tmp_path / "out.jsonl").read_text().splitlines()[0]
    (tmp_path / "other.jsonl").write_text(failed + "\n")
    server.reply = lambda handler: handler.send(b"", 500)
    with pytest.raises(SystemExit, match="the endpoint has answered nothing: "):
        judge_evidence.main([*command, f"--json={tmp_path}/other.jsonl"])
    assert (tmp_path / "other.jsonl").read_text() == failed + "\n"  # so that it is asked again
    server.reply = lambda handler: pytest.fail("asked again")
    assert judge_evidence.main(command) == 0


def test_what_is_not_answered_is_asked_again_and_what_can_not_be_read_is_not(few, server, tmp_path, capsys):
    """Of an endpoint that does not say how many tokens it wrote."""
    path = tmp_path / "out.jsonl"
    command = [f"--url={server.url}", "--model=m", f"--json={path}", "--snippets=1", "--concurrency=2"]

    def says(text, fails):
        def reply(handler):
            prompt = handler.body["messages"][0]["content"]
            fault = 500 if right.program in prompt and fails else 200
            handler.send({"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}, fault)

        return reply

    (right,) = failing_snippets.right()
    server.reply = says("perhaps", fails=True)
    assert judge_evidence.main(command) == 1
    out = capsys.readouterr().out
    assert "| plain | fail | 0 | 1 | - | - |" in out and "| plain | right | 0 | 0 | - | - |" in out
    assert "2 of 4 were not answered; the same command asks for them again" in out
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [(row["about"], row["passes"], row["says"]) for row in rows if "says" in row]
    assert kept == [("m 384 plain", False, None), ("m 384 evidence", False, None)]
    server.reply = says("1: yes", fails=False)
    assert judge_evidence.main(command) == 0
    assert "| plain | right | 1 | 0 | 0 (0%) |" in capsys.readouterr().out


def test_the_programs_look_right_and_fail(few):
    (snippet,) = failing_snippets.failing(1)
    with Grader("code", timeout=20.0) as grader:
        wrong, right = grader.grade([snippet.response, failing_snippets.right()[0].response], [snippet.tests] * 2)
    assert (wrong.score, right.score) == (0.0, 1.0) and "Tests passed: 0 of" not in wrong.reason


def test_tasks_differ_and_each_can_be_changed():
    tasks = failing_snippets.right()
    assert len({one.question for one in tasks}) == len(tasks) == 30
    changes = [list(failing_snippets._changed(one.program)) for one in tasks]
    assert sum(map(len, changes)) > 330 and all(len(set(some)) == len(some) >= 1 for some in changes)
