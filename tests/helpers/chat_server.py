"""A chat endpoint on this machine that answers as a test says."""

import contextlib
import http.server
import itertools
import json
import queue
import threading
import time

import pytest

from cgrpo_jax.inference.chat_client import ChatClient

KEY = "sk-very/secret+key"
USAGE = {"completion_tokens": 5, "prompt_tokens": 11}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.body = json.loads(data)
        self.server.seen.put((self.path, self.headers, self.body, time.monotonic()))
        with contextlib.suppress(ConnectionError):
            self.server.reply(self)

    def send(self, body, status=200, headers=()):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in [("Content-Length", str(len(data))), *headers]:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    """Answers as `reply(handler)` says; `over` is set when the test has ended."""

    daemon_threads, block_on_close = True, False
    request_queue_size = 64  # connections at a time; with five the system refuses some of sixteen

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        self.seen, self.over = queue.SimpleQueue(), threading.Event()

    def replies(self, *replies):
        """Sends one of these after the other, the last one for ever; each is what `Handler.send` takes."""
        left = itertools.chain(replies, itertools.repeat(replies[-1]))
        self.reply = lambda handler: handler.send(**next(left))

    def hang(self, _=None):
        self.over.wait(30)


@pytest.fixture
def server(monkeypatch):
    for name in ("http_proxy", "all_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with Server() as server:
        server.replies({"body": good()})
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


def good(text="fine", finish_reason="stop", usage=USAGE):
    return {"choices": [{"message": {"content": text}, "finish_reason": finish_reason}], "usage": usage}


def make(server, **kwargs):
    return ChatClient(server.url, **{"model": "m", "timeout": 10.0, "backoff": 0.001} | kwargs)
