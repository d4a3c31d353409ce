"""Whole runs whose critic is behind an HTTP endpoint: one that answers well, badly, late or not at all."""

import json
import re
import threading

import chat_server
import entry_points
import pytest
import tiny_run
from chat_server import KEY, Server, good
from tiny_run import metrics, run, samples

from cgrpo_jax.errors import GradingError
from cgrpo_jax.records import Author, Stage

server = chat_server.server  # the fixture
CRITIQUE = "Step 1 is wrong: not so. Conclusion: wrong [END]"
PRAISE = "Every step holds. Conclusion: right [END]"
INDICATIVE = "The answer is wrong. Conclusion: wrong [END]"


def options(url, /, **more):
    changes = {
        "critique.kind": "cot",
        "data.num_eval": 0,
        "critic.kind": "endpoint",
        "critic.endpoint.url": url,
        "critic.endpoint.model": "critic",
    }
    changes |= {"critic.endpoint.max_attempts": 1, "critique.max_retries": 1, "num_iterations": 2}
    return changes | {f"critic.endpoint.{key}": value for key, value in more.items()}


@pytest.fixture
def seen(monkeypatch):
    return tiny_run.watch(monkeypatch)


def shown(seen):
    """Returns the critiques in the refine prompts."""
    return {re.search(r"Critique: (.*)\nTry again", text)[1] for text in seen.asked(Stage.REFINEMENT)}


def asked(server):
    """Returns the bodies of all requests so far."""
    bodies = []
    while not server.seen.empty():
        bodies.append(server.seen.get()[2])
    return bodies


def totals(folder):
    """Returns the sums of the metrics of the critic over the iterations."""
    rows = metrics(folder)
    assert len(rows) == 2 and all(row["refine/attempted"] for row in rows)
    return {key: sum(row.get(key, 0) for row in rows) for row in rows for key in row if key.startswith("critic/")}


def decided_by_seed(folder):
    """Returns the metrics that do not depend on when the endpoint answers, as the engine's do, and what a file takes in
    which the last bits of log-probabilities are others."""
    ours = ("engine/", "rollouts/bytes")
    return [{k: v for k, v in row.items() if not k.startswith(ours)} for row in tiny_run.repeatable(folder)]


# --- answers that come --------------------------------------------------------------------------------------------


def test_critiques_from_an_endpoint_are_what_refinements_follow(tmp_path, server, seen):
    server.replies({"body": good(CRITIQUE)})
    folder = run(tmp_path, options(server.url))
    refinements = seen.of(Stage.REFINEMENT)
    assert shown(seen) == {CRITIQUE}
    assert not seen.of(Stage.CRITIQUE)  # the policy writes none
    for row in refinements:
        critique = row.parent
        assert (critique.text, critique.verdict, critique.author) == (CRITIQUE, False, Author.CRITIC)
    refined = [row for row in samples(folder) if row["refinement"] is not None]
    assert refined and {row["critique"] for row in refined} == {CRITIQUE}
    n = len(refinements)
    told = totals(folder)
    assert told["critic/attempts"] == told["critic/http_requests"] == told["critic/http_attempts"] == n
    assert told["critic/unanswered"] == told["critic/fallback_rate"] == told["critic/malformed_rate"] == 0
    assert not [key for key in told if "failed" in key]
    assert all(row["critic/valid"] == 1 for row in metrics(folder))

    bodies = asked(server)
    expected = [f"{row.parent.parent.text}\nCheck." for row in refinements]
    contents = [body["messages"][0]["content"] for body in bodies]
    assert sorted(text.partition("\nTried: ")[2] for text in contents) == sorted(expected)
    assert {(body["model"], body["max_tokens"], body["temperature"]) for body in bodies} == {("critic", 16, 1.0)}
    assert len({body["seed"] for body in bodies}) == n  # each its own
    again = run(tmp_path / "again", options(server.url))
    order = lambda bodies: sorted((body["messages"][0]["content"], body["seed"]) for body in bodies)  # noqa: E731
    assert order(asked(server)) == order(bodies)
    assert decided_by_seed(again) == decided_by_seed(folder) and samples(again) == samples(folder)


def test_a_verdict_that_disagrees_is_asked_for_again_with_another_seed(tmp_path, server, seen):
    lock, bodies = threading.Lock(), []

    def reply(handler):
        """Praises every other time."""
        with lock:
            bodies.append(server.seen.get()[2])
            text = PRAISE if len(bodies) % 2 else CRITIQUE
        handler.send(good(text))

    server.reply = reply
    folder = run(tmp_path, options(server.url, concurrency=1) | {"num_iterations": 1, "critique.max_retries": 5})
    (row,) = metrics(folder)
    assert shown(seen) == {CRITIQUE} and row["critic/fallback_rate"] == 0
    assert row["critic/attempts"] == row["critic/http_requests"] == len(bodies) > row["refine/attempted"]
    assert 0 < row["critic/false_right_rate"] <= 1
    assert len({body["seed"] for body in bodies}) == len(bodies)


def test_an_endpoint_that_always_disagrees_is_not_believed(tmp_path, server, seen):
    server.replies({"body": good(PRAISE)})
    folder = run(tmp_path, options(server.url) | {"num_iterations": 1})
    (row,) = metrics(folder)
    assert shown(seen) == {INDICATIVE} and row["critic/fallback_rate"] == row["critic/false_right_rate"] == 1
    assert row["critic/attempts"] == 2 * row["refine/attempted"] and row["critic/unanswered"] == 0


def test_the_verdict_of_an_endpoint_as_the_reward(tmp_path, server):
    server.replies({"body": good(PRAISE)})
    changes = {"reward_source": "critic", "critique.when": "all", "num_iterations": 1}
    (row,) = metrics(run(tmp_path, options(server.url) | changes))
    assert row["reward"] == 1 and row["critic/http_requests"] == 16


def test_a_verdict_that_does_not_come_is_no_reward(tmp_path, server):
    """A run goes on without some; without any it ends, and goes on where the endpoint answers again."""
    server.reply = lambda handler: handler.send(*(lost if handler.server.seen.qsize() > 20 else (good(PRAISE),)))
    lost = b"", 503
    changes = {"reward_source": "critic", "critique.when": "all", "num_iterations": 3, "checkpoints.every": 100}
    with pytest.raises(GradingError, match=r"'critic' gave no verdict on any of \d+ responses .* see that it works"):
        run(tmp_path, options(server.url, max_attempts=1) | changes)
    assert len(metrics(tmp_path)) == 2
    server.replies({"body": good(PRAISE)})
    run(tmp_path, options(server.url, max_attempts=1) | changes)
    rows = metrics(tmp_path)
    assert [row["reward"] for row in rows] == [1, 1, 1] and not any(row["refine/attempted"] for row in rows)
    assert [row["grade/failures"] for row in rows] == [row["critic/unanswered"] for row in rows] == [0, 12, 0]


# --- answers that do not come -------------------------------------------------------------------------------------


def garbage(server):
    server.replies({"body": b"<html>busy</html>"})
    return {}, "garbage"


def errors(server):
    server.replies({"body": {"error": {"message": "no memory"}}, "status": 500})
    return {"max_attempts": 2}, "status 500"


def silence(server):
    server.reply = server.hang
    return {"timeout": 0.2, "concurrency": 64}, "timeout"


def nobody(server):
    with Server() as unused:
        return {"url": unused.url}, "unreachable"


@pytest.mark.parametrize("fault", [garbage, errors, silence, nobody])
def test_a_run_goes_on_without_its_endpoint(tmp_path, server, seen, fault):
    more, category = fault(server)
    folder = run(tmp_path, options(server.url, **more))
    assert shown(seen) == {INDICATIVE}
    assert {row["critique"] for row in samples(folder) if row["refinement"] is not None} == {INDICATIVE}
    assert {row.parent.author for row in seen.of(Stage.REFINEMENT)} == {Author.RULE}
    told, n = totals(folder), len(seen.of(Stage.REFINEMENT))
    assert told["critic/unanswered"] == told["critic/http_requests"] == told[f"critic/http_failed/{category}"] == n
    assert told["critic/attempts"] == n  # one that has had its retries is not asked again
    assert told["critic/http_attempts"] == n * more.get("max_attempts", 1)
    assert told["critic/fallback_rate"] == 2
    assert json.loads((folder / "summary.json").read_text())["updates"] == 2


def test_a_critic_that_says_nothing_usable_ends_the_run(tmp_path, server):
    """The method would become another in silence. Nothing is lost: the same command resumes."""
    server.replies({"body": good("Hm.")})
    changes = options(server.url) | {"num_iterations": 4, "critique.max_retries": 7, "refine.max_pass": 1.0}
    with pytest.raises(GradingError, match="the critic's endpoint gave no verdict to its last \\d+ requests .*resume"):
        run(tmp_path, changes)
    assert len(asked(server)) >= 32 and not (tmp_path / "summary.json").exists()
    server.replies({"body": good(CRITIQUE)})
    run(tmp_path, changes)
    rows = metrics(tmp_path)
    assert len(rows) == 4 and rows[-1]["critic/fallback_rate"] == 0


def test_a_budget_of_requests(tmp_path, server, seen):
    server.replies({"body": good(CRITIQUE)})
    folder = run(tmp_path, options(server.url, max_requests=3))
    told, n = totals(folder), len(seen.of(Stage.REFINEMENT))
    assert len(asked(server)) == told["critic/http_attempts"] == 3 < n
    assert told["critic/http_failed/over budget"] == told["critic/unanswered"] == n - 3
    texts = [row.parent.text for row in seen.of(Stage.REFINEMENT)]
    assert (texts.count(CRITIQUE), texts.count(INDICATIVE)) == (3, n - 3)
    first, second = metrics(folder)
    assert second["critic/fallback_rate"] == 1 and 0 < first["critic/fallback_rate"] < 1


# --- test-time refinement -----------------------------------------------------------------------------------------


def evaluate(folder, url, /, **more):
    """Evaluates the weights that all runs start from, with refinement; returns its lines and numbers."""
    changes = options(url, **more) | {"model.init": tiny_run.start(), "data.num_eval": 8}
    entry_points.run_evaluate(folder, changes, "--refine")
    rows = tiny_run.lines(folder / "evaluation" / "samples.jsonl")
    assert len(rows) == 8
    return rows, entry_points.evaluated(folder / "evaluation")[1]["mean"]


def test_evaluate_asks_the_endpoint_about_greedy_answers(tmp_path, server):
    asked_about = []

    def reply(handler):
        """Calls every answer wrong that ends in an odd digit."""
        body = server.seen.get()[2]
        asked_about.append(body)
        content = body["messages"][0]["content"]
        handler.send(good(CRITIQUE if re.search(r"[13579]\nCheck\.", content) else PRAISE))

    server.reply = reply
    rows, numbers = evaluate(tmp_path, server.url)
    # Each is asked about once, greedily, and about nothing that tells the gold answer or the reward.
    contents = [body["messages"][0]["content"] for body in asked_about]
    expected = [f"{row['greedy']}\nCheck." for row in rows]
    assert sorted(text.partition("\nTried: ")[2] for text in contents) == sorted(expected)
    assert {(len(body["messages"]), body["temperature"], body["max_tokens"]) for body in asked_about} == {(1, 0.0, 16)}
    wrong = [row for row in rows if row["greedy"][-1] in "13579"]
    assert 0 < len(wrong) < 8 and numbers["critiqued_wrong"] == len(wrong) / 8 and numbers["malformed"] == 0
    for row in rows:
        assert row["critique"] == (CRITIQUE if row in wrong else PRAISE) and row["verdict"] == (row not in wrong)
        assert ("refinement" in row) == (row in wrong)
        assert row["refined_reward"] == row["refinement_reward" if row in wrong else "greedy_reward"]
    again, same = evaluate(tmp_path / "again", server.url)
    assert again == rows and same == numbers


def test_evaluate_keeps_answers_that_the_endpoint_says_nothing_about(tmp_path, server):
    server.replies({"body": b"", "status": 503})
    rows, numbers = evaluate(tmp_path, server.url)
    assert {(row["critique"], row["verdict"], "refinement" in row) for row in rows} == {(None, None, False)}
    assert all(row["refined_reward"] == row["greedy_reward"] for row in rows)
    assert numbers["malformed"] == 1 and numbers["refined@1"]["value"] == numbers["pass@1"]["value"]
    assert numbers["fixed"] == numbers["broken"] == 0


# --- the key, and `sample` ----------------------------------------------------------------------------------------


def test_the_key_is_written_nowhere(tmp_path, server, monkeypatch, caplog, capfd):
    monkeypatch.setenv("CRITIC_KEY", KEY)
    server.replies({"body": good(CRITIQUE)}, {"body": {"error": {"message": f"no such key: {KEY}"}}, "status": 401})
    folder = run(tmp_path, options(server.url, key_variable="CRITIC_KEY") | {"num_iterations": 1})
    assert server.seen.get_nowait()[1]["Authorization"] == f"Bearer {KEY}"
    assert metrics(folder)[0]["critic/http_failed/status 401"] > 0
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"CRITIC_KEY" in written  # its name in config.json
    told = [written, caplog.text.encode(), *(text.encode() for text in capfd.readouterr())]
    assert b"no such key: ***" in told[1]
    assert not any(secret in text for text in told for secret in (KEY.encode(), b"sk-very", b"secret"))


def judge(handler):
    """Answers with the verdict that the verifier has."""
    content = handler.server.seen.get()[2]["messages"][0]["content"]
    handler.send(good(PRAISE if "Answer: 56\nCheck." in content else CRITIQUE))


def test_sample_asks_the_endpoint(tmp_path, server, capsys):
    server.reply = judge
    changes = options(server.url) | {"model.init": tiny_run.start()}
    capsys.readouterr()
    entry_points.run_sample(tmp_path / "none", "--question=7*8", changes=changes)
    out = capsys.readouterr().out
    assert re.search(rf"critique \(critic\):\n({re.escape(PRAISE)}|{re.escape(CRITIQUE)})\n", out)
    server.replies({"body": b"", "status": 503})
    entry_points.run_sample(tmp_path / "none", "--question=7*8", changes=changes)
    assert re.search(r"critique \(rule\):\nThe answer is (right|wrong)\.", capsys.readouterr().out)
