import email.utils
import gzip
import json
import logging
import queue
import random
import socket
import subprocess
import sys
import threading
import time

import chat_server
import httpx
import pytest
import time_growth
from chat_server import KEY, USAGE, Server, good, make

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import chat_protocol
from cgrpo_jax.inference.chat_client import Answer, ChatClient

server = chat_server.server  # the fixture
ASKED = {"max_tokens": 40, "temperature": 0.5, "top_p": 0.9, "seed": 7}


def ask(critic, prompt="Right?", **kwargs):
    return critic.submit(prompt, **ASKED | kwargs).result(timeout=20)


def failed(failure, attempts):
    return Answer(None, False, 0, 0, attempts, failure)


def test_a_good_answer(server):
    with make(server) as critic:
        assert ask(critic) == Answer("fine", False, 5, 11, 1, None)
        assert critic.counts == {
            "requests": 1,
            "attempts": 1,
            "answers": 1,
            "truncated": 0,
            "completion_tokens": 5,
            "prompt_tokens": 11,
        }
    path, headers, body, _ = server.seen.get_nowait()
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert body == {"model": "m", "messages": [{"role": "user", "content": "Right?"}]} | ASKED


def test_messages_and_system(server):
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "\ud800"}]
    with make(server) as critic:
        assert ask(critic, messages, system="be brief").text == "fine"
    assert server.seen.get_nowait()[2]["messages"] == [{"role": "system", "content": "be brief"}, *messages]
    assert len(messages) == 2


def test_truncated_and_without_usage(server):
    server.replies({"body": good(finish_reason="length", usage=None)}, {"body": good("\ud800x", usage={})})
    with make(server) as critic:
        assert ask(critic) == Answer("fine", True, 0, 0, 1, None)
        assert ask(critic).text == "?x"
        assert critic.counts["truncated"] == 1


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_a_reply_cut_off_while_the_model_thought_says_nothing(server, name):
    """Servers that part thinking from what is said give no content then. It would be so again."""
    choice = {"message": {"content": None, name: "hm"}, "finish_reason": "length"}
    server.replies({"body": {"choices": [choice]}})
    with make(server) as critic:
        assert ask(critic) == Answer("", True, 0, 0, 1, None)
    server.replies({"body": {"choices": [choice | {"finish_reason": "stop"}]}})
    with make(server) as critic:
        assert ask(critic).failure == "garbage"


def test_error_then_good_leaves_the_global_random_state_alone(server):
    server.replies({"body": b"", "status": 500}, {"body": b"", "status": 409}, {"body": good()})
    state = random.getstate()
    with make(server) as critic:
        assert ask(critic) == Answer("fine", False, 5, 11, 3, None)
        assert critic.counts["retried/status 500"] == critic.counts["retried/status 409"] == 1
        assert critic.counts["attempts"] == 3
    assert random.getstate() == state


def test_always_an_error_is_said_once(server, caplog):
    server.replies({"body": {"error": {"message": "out of\x1b memory"}}, "status": 503})
    with make(server, max_attempts=3) as critic:
        assert ask(critic) == ask(critic) == failed("status 503", 3)
        assert critic.counts == {
            "requests": 2,
            "attempts": 6,
            "retried/status 503": 4,
            "failed/status 503": 2,
            "truncated": 0,
        }
    logged = [record for record in caplog.records if record.name == "cgrpo_jax.inference.chat_client"]
    assert len(logged) == 1
    assert "/v1/chat/completions: status 503 (out of  memory)" in logged[0].getMessage()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>busy</html>",
        b"\xff\xfe\x00",
        b"[" * 100_000,
        b"[]",
        b'"text"',
        {},
        {"error": {"message": "overloaded"}},
        {"choices": []},
        {"choices": {"0": 1}},
        {"choices": [None]},
        {"choices": [{"message": "fine"}]},
        good(None),
        good(["fine"]),
        b" " * (chat_protocol.MAX_BYTES + 1) + b"{}",
    ],
    ids=lambda body: repr(body[:12] if isinstance(body, bytes) else body)[:40],
)
def test_garbage_is_retried(server, body):
    server.replies({"body": body}, {"body": good()})
    with make(server) as critic:
        assert ask(critic) == Answer("fine", False, 5, 11, 2, None)
        assert critic.counts["retried/garbage"] == 1


@pytest.mark.parametrize("status, failure", [(200, "garbage"), (500, "status 500")])
@pytest.mark.parametrize("encoding", ["gzip, gzip", "GZIP", "br", "x" * 5000])
def test_a_reply_that_is_compressed_unasked_is_not_decompressed(server, caplog, monkeypatch, status, failure, encoding):
    monkeypatch.setattr(httpx.Response, "aiter_bytes", lambda *_: pytest.fail("decompresses"))
    body = gzip.compress(gzip.compress(json.dumps(good("a" * 10**6)).encode()))
    server.replies({"body": body, "status": status, "headers": [("Content-Encoding", encoding)]})
    with make(server, max_attempts=1) as critic:
        assert ask(critic) == failed(failure, 1)
    assert "the response is compressed" in caplog.text and len(caplog.text) < 1000
    assert server.seen.get_nowait()[1]["Accept-Encoding"] == "identity"


def test_identity_is_no_compression(server):
    server.replies({"body": good(), "headers": [("Content-Encoding", " Identity")]})
    with make(server) as critic:
        assert ask(critic).text == "fine"


def test_a_text_far_longer_than_was_asked_for_is_garbage(server):
    most = chat_protocol.MAX_CHARACTERS * ASKED["max_tokens"]
    server.replies({"body": good("a" * (most + 1))}, {"body": good("a" * most)})
    with make(server) as critic:
        assert len(ask(critic).text) == most
        assert critic.counts["retried/garbage"] == 1


def test_a_body_in_another_dialect(server):
    dialect = chat_protocol.Dialect(
        max_tokens_field="max_completion_tokens",
        send_temperature=False,
        extra_body=chat_protocol.extra_body('{"reasoning_effort": "low", "stop": ["\\ud800"]}'),
    )
    with make(server, dialect=dialect) as critic:
        assert ask(critic).text == "fine"
    assert server.seen.get_nowait()[2] == {
        "model": "m",
        "messages": [{"role": "user", "content": "Right?"}],
        "max_completion_tokens": 40,
        "seed": 7,
        "reasoning_effort": "low",
        "stop": ["\ud800"],
    }


@pytest.mark.parametrize(
    "value", ["[]", "x", "[" * 99999, '{"a": NaN}', *(f'{{"{one}": 1}}' for one in chat_protocol.OWN_FIELDS)]
)
def test_extra_fields_that_are_refused(value):
    with pytest.raises(UserError, match="is no JSON object; write one|is no extra field: other keys say it"):
        chat_protocol.extra_body(value)


def test_a_secret_of_the_query_is_sent_and_not_shown(server, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("QUERY_KEY", KEY)
    server.replies({"body": f"no such key: {KEY}, {json.dumps(KEY)}".encode(), "status": 401})
    url = f"{server.url}?api-version=2&key=$QUERY_KEY"
    with ChatClient(url, model="m", max_attempts=1) as critic:
        shown = [repr(critic), str(ask(critic)), str(critic.counts), caplog.text]
    assert httpx.URL(server.seen.get_nowait()[0]).params.multi_items() == [("api-version", "2"), ("key", KEY)]
    assert "HTTP Request: POST" in caplog.text and "no such key: ***" in caplog.text  # httpx's line, without the query
    assert not any(part in text for part in ("sk-", "secret", "key=") for text in shown)
    monkeypatch.delenv("QUERY_KEY")
    with pytest.raises(UserError, match="'QUERY_KEY' for the critic's key is not set"):
        ChatClient(url, model="m")


def test_a_secret_is_found_however_it_is_escaped():
    hide = chat_protocol.Redactor([KEY, "", "other"])
    spelt = [
        KEY,
        json.dumps(KEY)[1:-1].replace("/", "\\/"),
        "".join(f"\\u{ord(c):04X}" for c in KEY),
        "".join(f"\\\\u{ord(c):04x}" for c in KEY),
        "".join(f"%{ord(c):02x}" for c in KEY),
        "".join(f"&#{ord(c)};" for c in KEY),
        "".join(f"&#x{ord(c):X};" for c in KEY),
        "other",
    ]
    assert [hide(f"a {text} b") for text in spelt] == ["a *** b"] * len(spelt)
    assert chat_protocol.Redactor([])("text") == "text"


@pytest.mark.parametrize("piece", ["\\", "&#0", "%", "s", "sk-very/secre", "\\u0"])
def test_secrets_are_looked_for_in_linear_time(piece):
    assert time_growth.is_linear(chat_protocol.Redactor([KEY, "s" * 50]), piece, short=20_000)


def test_garbage_that_cannot_be_decompressed(server):
    server.replies({"body": b"no gzip", "headers": [("Content-Encoding", "gzip")]})
    with make(server, max_attempts=1) as critic:
        assert ask(critic) == failed("garbage", 1)


@pytest.mark.parametrize("usage", [[], {"completion_tokens": -1}, {"completion_tokens": "9", "prompt_tokens": 1e9}])
def test_usage_that_is_no_count(server, usage):
    server.replies({"body": good(usage=usage)})
    with make(server) as critic:
        assert ask(critic) == Answer("fine", False, 0, 0, 1, None)


def test_connection_refused(server):
    with Server() as unused:
        url = unused.url
    with ChatClient(url, model="m", max_attempts=2, backoff=0.001) as critic:
        assert ask(critic) == failed("unreachable", 2)


def test_connection_cut(server):
    server.reply = lambda handler: setattr(handler, "close_connection", True)
    with make(server, max_attempts=2) as critic:
        assert ask(critic) == failed("connection broken", 2)


def test_host_names_are_looked_up(server):
    with ChatClient(server.url.replace("127.0.0.1", "localhost"), model="m") as critic:
        assert ask(critic).text == "fine"


def test_a_dead_name_server_keeps_nothing_alive(server, monkeypatch):
    daemons = []

    def look_up(*_, **__):
        daemons.append(threading.current_thread().daemon)
        server.over.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with ChatClient("http://critic.invalid", model="m", timeout=0.1, max_attempts=1) as critic:
        assert ask(critic) == failed("timeout", 1)
    assert daemons == [True]


def test_an_unknown_host_is_unreachable(server, monkeypatch):
    def look_up(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    with ChatClient("http://critic.invalid", model="m", max_attempts=1) as critic:
        assert ask(critic) == failed("unreachable", 1)


def test_a_mistake_of_ours_is_an_answer_too(server, monkeypatch):
    monkeypatch.setattr(chat_protocol, "parse", lambda *_: 1 / 0)
    with make(server) as critic:
        assert ask(critic) == failed("error ZeroDivisionError", 1)


def test_a_server_that_never_answers_then_does(server):
    replies = iter([server.hang, lambda handler: handler.send(good())])
    server.reply = lambda handler: next(replies)(handler)
    with make(server, timeout=0.3) as critic:
        assert ask(critic).text == "fine"
        assert critic.counts["retried/timeout"] == 1


def test_a_server_that_trickles_is_cut_off(server):
    def trickle(handler):
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        while not server.over.wait(0.01):
            handler.wfile.write(b" ")

    server.reply = trickle
    with make(server, timeout=0.2, max_attempts=1) as critic:
        assert ask(critic) == failed("timeout", 1)


def test_retry_after_is_honoured_up_to_the_longest_backoff(server):
    server.replies({"body": b"", "status": 429, "headers": [("Retry-After", "3600")]}, {"body": good()})
    with make(server, max_backoff=0.2) as critic:
        assert ask(critic).attempts == 2
    first, second = (server.seen.get_nowait()[3] for _ in range(2))
    assert second - first >= 0.2


def test_retry_after_forms():
    assert chat_protocol.seconds("1.5") == 1.5
    assert 50 < chat_protocol.seconds(email.utils.formatdate(time.time() + 60, usegmt=True)) < 61
    past = email.utils.formatdate(0, usegmt=True)
    assert [chat_protocol.seconds(text) for text in ("", "soon", "-3", "nan", past)] == [0.0] * 5


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_other_statuses_are_not_retried(server, status):
    server.replies({"body": b"", "status": status, "headers": [("Location", f"{server.url}/chat/completions")]})
    with make(server) as critic:
        assert ask(critic) == failed(f"status {status}", 1)
        assert critic.counts[f"failed/status {status}"] == 1
    assert server.seen.get_nowait() and server.seen.empty()


def test_concurrency_is_reached_and_not_exceeded(server):
    release, lock, levels = threading.Event(), threading.Lock(), []
    active = 0

    def reply(handler):
        nonlocal active
        with lock:
            active += 1
            levels.append(active)
        release.wait(20)
        with lock:
            active -= 1
        handler.send(good())

    server.reply = reply
    with make(server, concurrency=3) as critic:
        futures = [critic.submit("Right?", **ASKED) for _ in range(9)]
        for _ in range(3):
            server.seen.get(timeout=20)
        with pytest.raises(queue.Empty):
            server.seen.get(timeout=0.1)
        assert not any(future.done() for future in futures)
        assert not futures[-1].cancel()
        release.set()
        assert [future.result(timeout=20).text for future in futures] == ["fine"] * 9
    assert max(levels) == 3


def test_a_budget_of_requests(server):
    with make(server, max_requests=2) as critic:
        assert [ask(critic).failure for _ in range(4)] == [None, None, "over budget", "over budget"]
        assert critic.submit("Right?", **ASKED).done()
        assert critic.counts["attempts"] == 2
        assert critic.counts["requests"] == critic.counts["answers"] + critic.counts["failed/over budget"] == 5


@pytest.mark.parametrize(("usage", "answers"), [(USAGE, 2), ({}, 1)])
def test_a_budget_of_tokens(server, usage, answers):
    # Without usage, the first completion counts as its longest: 40 tokens. An error counts as nothing.
    server.replies({"body": {"error": {}}}, {"body": good(usage=usage)})
    with make(server, max_tokens=10) as critic:
        assert [ask(critic).failure for _ in range(3)] == [None] * answers + ["over budget"] * (3 - answers)


def test_a_budget_of_tokens_stops_what_was_submitted_before_it_was_spent(server):
    server.replies({"body": good(None, "length")})  # garbage is paid for, too
    with make(server, max_tokens=5, concurrency=1) as critic:
        futures = [critic.submit("Right?", **ASKED) for _ in range(2)]
        answers = [future.result(timeout=20) for future in futures]
        assert answers == [failed("over budget", 1), failed("over budget", 0)]
        assert critic.counts["completion_tokens"] == 5


def test_the_key_is_sent_and_not_shown(server, monkeypatch, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("CRITIC_KEY", f"{KEY}\n")
    server.replies(
        {"body": {"error": {"message": f"no such key: {KEY}."}}, "status": 401},
        {"body": json.dumps({"detail": KEY}).replace("/", r"\/").encode(), "status": 403},
        {"body": b"x" * 185 + KEY.encode()},
    )
    with make(server, key_variable="CRITIC_KEY", max_attempts=1) as critic:
        answers = [ask(critic) for _ in range(3)]
        shown = [repr(critic), str(answers), str(critic.counts), caplog.text, *capfd.readouterr()]
    assert server.seen.get_nowait()[1]["Authorization"] == f"Bearer {KEY}"
    assert [answer.failure for answer in answers] == ["status 401", "status 403", "garbage"]
    assert "no such key: ***." in caplog.text
    assert not any(part in text for part in ("sk-", "secret") for text in shown)


def test_close_drops_hanging_requests_quickly(server):
    server.reply = server.hang
    critic = make(server, concurrency=2)
    futures = [critic.submit("Right?", **ASKED) for _ in range(4)]
    for _ in range(2):
        server.seen.get(timeout=20)
    start = time.monotonic()
    critic.close()
    assert [future.result(timeout=0).failure for future in futures] == ["closed"] * 4
    assert time.monotonic() - start < 3.0
    assert not critic._thread.is_alive()
    critic.close()
    assert ask(critic) == failed("closed", 0)
    assert critic.counts["failed/closed"] == 5


def test_close_during_backoff_and_from_a_callback(server):
    server.replies({"body": b"", "status": 500})
    closed = threading.Event()
    critic = make(server, backoff=1000.0, max_backoff=1000.0)
    waiting = critic.submit("Right?", **ASKED)
    server.seen.get(timeout=20)
    server.replies({"body": good()})
    critic.submit("Right?", **ASKED).add_done_callback(lambda _: (critic.close(), closed.set()))
    assert closed.wait(20)
    assert waiting.result(timeout=20).failure == "closed"
    critic.close()
    assert not critic._thread.is_alive()


def test_a_hanging_request_does_not_keep_the_interpreter_alive(server):
    server.reply = server.hang
    code = (
        "import sys; from cgrpo_jax.inference.chat_client import ChatClient;"
        "critic = ChatClient(sys.argv[1], model='m');"
        f"critic.submit('Right?', **{ASKED}); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, server.url]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env={"PYTHONPATH": ":".join(sys.path)}) as run:
        server.seen.get(timeout=20)
        assert run.communicate(timeout=20) == (b"", b"")
        assert run.returncode == 0


def test_endpoint():
    def where(url):
        return str(chat_protocol.endpoint(url))

    assert where("https://a.b/v1/") == where("https://a.b/v1/chat/completions") == "https://a.b/v1/chat/completions"
    assert where("http://[::1]:80?api-version=2") == "http://[::1]/chat/completions?api-version=2"
    assert chat_protocol.shown(httpx.URL("http://a/v1?k=secret#x")) == "http://a/v1"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:8000", "'localhost:8000' is not http"),
        ("ftp://host/v1", "use one such as"),
        ("http://", "'http://' is not http"),
        ("http://host:port/v1", "'http://host:port/v1' is not http"),
        ("http://user:secret@host/v1", "'http://\\*\\*\\*@host/v1' holds a password"),
        ("http://user:se/secret@host/v1", "'http://\\*\\*\\*@host/v1' is not http|holds a password"),
        ("ftp://host/v1?key=secret", "'ftp://host/v1\\?\\*\\*\\*' is not http"),
        (
            "http://host/v1?key=secret",
            r"'http://host/v1\?\*\*\*' has values in its query, which config.json would keep.* as in \?key=\$NAME",
        ),
        ("http://host/v1?api-version=1&sig=$A.secret", "has values in its query, which config.json would keep"),
        ("http://host/v1#secret", "has a part after #"),
        ("http://host\ud800/v1?secret", "is not http"),
    ],
)
def test_urls_that_are_refused(url, message):
    with pytest.raises(UserError, match=message) as caught:
        ChatClient(url, model="m")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"model": ""},
        {"concurrency": 0},
        {"timeout": 0.0},
        {"timeout": float("nan")},
        {"max_attempts": -1},
        {"backoff": -1.0},
        {"max_backoff": float("inf")},
        {"max_requests": -1},
        {"max_tokens": -1},
    ],
    ids=str,
)
def test_arguments_that_are_refused(kwargs):
    with pytest.raises(UserError, match=next(iter(kwargs))):
        ChatClient("http://localhost", **{"model": "m"} | kwargs)


@pytest.mark.parametrize("key", [None, "", " ", "secret key", "secret\u00e9", "secret\nkey"])
def test_keys_that_are_refused(monkeypatch, key):
    monkeypatch.delenv("CRITIC_KEY", raising=False)
    if key is not None:
        monkeypatch.setenv("CRITIC_KEY", key)
    with pytest.raises(UserError, match="'CRITIC_KEY'") as caught:
        ChatClient("http://localhost", model="m", key_variable="CRITIC_KEY")
    assert "secret" not in str(caught.value)


def test_a_proxy_that_cannot_be_used(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "gopher://user:secret@proxy")
    with pytest.raises(UserError, match="fix HTTP_PROXY") as caught:
        ChatClient("http://localhost", model="m")
    assert "secret" not in str(caught.value)
