"""Chat endpoints that are meant to do harm: sockets on this machine; what each sends is a function of a number.

The first part of a number says how a server behaves, the rest with what: `behaviours()[number % n](number // n)`.
"""

import contextlib
import gzip
import json
import socket
import struct
import threading
import zlib
from collections.abc import Callable, Iterator

KEY, QUERY = "sk-key/of+the=run", "query~secret/9"
GOOD = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": {"completion_tokens": 5}}
Behave = Callable[["Connection"], None]


class Connection:
    """What a behaviour talks to."""

    def __init__(self, conn: socket.socket, over: threading.Event):
        self.conn, self.over = conn, over

    def read(self) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.conn.recv(1 << 16)
            if not piece:
                return
            data += piece

    def send(self, *data: bytes) -> None:
        for one in data:
            self.conn.sendall(one)

    def for_ever(self, data: bytes, every: float = 0.0) -> None:
        while not self.over.wait(every):
            self.conn.sendall(data)

    def respond(self, body: bytes, *headers: bytes, status: bytes = b"200 OK") -> None:
        self.send(head(*headers, b"Content-Length: %d" % len(body), status=status), body)


def head(*headers: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 " + status + b"\r\n" + b"".join(one + b"\r\n" for one in headers) + b"\r\n"


@contextlib.contextmanager
def running(behave: Behave) -> Iterator[str]:
    """Runs a server for the block; gives its address."""
    over = threading.Event()

    def serve(conn: socket.socket) -> None:
        conn.settimeout(20)
        with conn, contextlib.suppress(OSError):
            connection = Connection(conn, over)
            connection.read()
            behave(connection)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while not over.is_set():
                conn, _ = listener.accept()
                threading.Thread(target=serve, args=(conn,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            over.set()
            listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def pick(options: list, p: int):
    return options[p % len(options)]


# --- behaviours, each of a parameter --------------------------------------------------------------------------------


def closes(p: int) -> Behave:
    def behave(c: Connection) -> None:
        if p % 2:
            c.conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
        c.send(pick([b"", b"H", head(b"Content-Length: 9")[:-2], head(b"Content-Length: 9") + b"{"], p // 2))

    return behave


def drips(p: int) -> Behave:
    begin = pick(
        [b"", b"HTTP/1.1 200 OK\r\nX: ", head(b"Content-Length: 99999"), head(b"Transfer-Encoding: chunked")], p
    )
    return lambda c: (c.send(begin), c.for_ever(pick([b"H", b"x", b" ", b"1\r\n \r\n"], p), 0.02))


def never_ends(p: int) -> Behave:
    block = b" " * 65536
    begin = pick([head(), head(b"Transfer-Encoding: chunked"), b"HTTP/1.1 200 OK\r\n", head(status=b"500 Oh")], p)
    piece = pick([block, b"10000\r\n" + block + b"\r\n", b"X: " + b"y" * 1000 + b"\r\n", block], p)
    return lambda c: (c.send(begin), c.for_ever(piece))


def silent(p: int) -> Behave:
    return lambda c: (c.send(pick([b"", head(b"Content-Length: 5"), b"\r\n" * 10, b"HTTP/1.1 "], p)), c.over.wait(20))


def large_header(p: int) -> Behave:
    size = pick([50_000, 200_000, 5_000_000, 16_000_000], p)
    return lambda c: c.respond(json.dumps(GOOD).encode(), b"X: " + b"y" * size)


def bomb(levels: int) -> bytes:
    data = b" " * (10 << 20)
    for _ in range(levels):
        data = gzip.compress(data)
    return data


def compressed(p: int) -> Behave:
    body, encoding = pick(
        [
            (bomb(1), b"gzip"),
            (bomb(2), b"gzip, gzip"),
            (zlib.compress(b"{}" * 10**6), b"deflate"),
            (b"no gzip", b"GZIP"),
            (bomb(3), b"gzip,gzip,gzip"),
            (b"{}", b"br"),
            (b"{}", b"zstd"),
            (bomb(1), b"x" * 10_000),
        ],
        p,
    )
    return lambda c: c.respond(body, b"Content-Encoding: " + encoding, status=pick([b"200 OK", b"500 Oh"], p // 8))


SHAPES = [
    {},
    [],
    None,
    0,
    "text",
    {"choices": None},
    {"choices": {}},
    {"choices": []},
    {"choices": [None]},
    {"choices": [[]]},
    {"choices": [{"message": None}]},
    {"choices": [{"message": {"content": 3}}]},
    {"choices": [{"message": {"content": ["a"]}}]},
    {"choices": [{"text": "a"}]},
    {"error": "x"},
    {"error": {"message": {"a": 1}}},
    {"error": {"message": "\x1b[2J\u202e\n" * 10**5}},
    GOOD | {"usage": {"completion_tokens": 2**62, "prompt_tokens": "x"}},
    GOOD | {"usage": []},
    GOOD | {"choices": GOOD["choices"] * 10**5},
    {"choices": [{"message": {"content": "a" * (7 << 20)}}]},
    {"choices": [{"message": {"content": "\ud800"}, "finish_reason": {}}]},
    {"choices": [{"message": {"content": None, "reasoning": "x" * 10**6}, "finish_reason": "length"}]},
    {"object": "error", "message": KEY},
]


def shaped(p: int) -> Behave:
    return lambda c: c.respond(json.dumps(pick(SHAPES, p)).encode())


BODIES = [
    b"",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b"{",
    b"[" * (8 << 20),
    b"[" + b"[],{}," * 1_390_000 + b"0]",
    b'{"a":' * 10**6,
    b"9" * 10**6,
    b'{"choices": [{"message": {"content": "\xff"}}]}',
    b"NaN",
    b"<html>" * 10**6,
    b"{}" * (5 << 20),
    b'"\\ud800"',
    b"\x00" * 100,
    b'{"choices":' * 900 + b"0" + b"}" * 900,
    ("\ufeff" + json.dumps(GOOD)).encode("utf-16"),
]


def raw(p: int) -> Behave:
    return lambda c: c.respond(pick(BODIES, p))


def framed(p: int) -> Behave:
    good = json.dumps(GOOD).encode()
    sent = pick(
        [
            head(b"Content-Length: 99999") + good,
            head(b"Content-Length: 3") + good,
            head(b"Content-Length: -1") + good,
            head(b"Content-Length: " + b"9" * 40) + good,
            head(b"Content-Length: 1", b"Content-Length: 2") + good,
            head(b"Transfer-Encoding: chunked") + b"zz\r\n" + good,
            head(b"Transfer-Encoding: chunked") + b"f" * 40 + b"\r\n" + good,
            head(b"Transfer-Encoding: chunked") + b"-5\r\n" + good,
            head(b"Transfer-Encoding: chunked") + b"1;" + b"x" * 200_000,
            head(b"Transfer-Encoding: chunked") + b"0\r\n" + b"T: x\r\n" * 100_000,
            head(b"Transfer-Encoding: gzip") + good,
        ],
        p,
    )
    return lambda c: c.send(sent)


def redirects(p: int) -> Behave:
    to = pick(
        [
            b"/v1/chat/completions",
            b"http://169.254.169.254/",
            b"file:///etc/passwd",
            b"x" * 50_000,
            b"\xff\x00",
            b"//[",
            b"",
            b"http://h",
        ],
        p,
    )
    status = pick([b"301 M", b"302 F", b"307 T", b"308 P", b"300 C", b"304 N"], p)
    return lambda c: c.respond(b"", b"Location: " + to, status=status)


def informs(p: int) -> Behave:
    piece = head(pick([b"Link: x", b"X: " + b"y" * 60_000], p // 2), status=pick([b"103 Early", b"100 Continue"], p))
    return lambda c: c.for_ever(piece)


LINES = [
    b"HTTP/0.9 200 OK",
    b"HTTP/9.9 200 OK",
    b"PRI * HTTP/2.0",
    b"HTTP/1.1 99 X",
    b"HTTP/1.1 999 X",
    b"HTTP/1.1 101 Switching",
    b"HTTP/1.1 204 No",
    b"HTTP/1.1 200 " + b"x" * 50_000,
    b"HTTP/1.1 500 \x1b[2J" + KEY.encode(),
    b"\x16\x03\x01\x02\x00",
    b"220 smtp",
    b"HTTP/1.1 2000000 X",
    b"",
]


def status_lines(p: int) -> Behave:
    return lambda c: c.send(pick(LINES, p) + b"\r\nContent-Length: 2\r\n\r\n{}")


RETRY = [
    b"99999999999",
    b"-5",
    b"nan",
    b"inf",
    b"1e400",
    b"Mon, 99 Foo 99999",
    b"Wed, 21 Oct 9999 07:28:00 GMT",
    b"x" * 10_000,
    b"9" * 5000,
]


def retries(p: int) -> Behave:
    return lambda c: c.respond(b"{}", b"Retry-After: " + pick(RETRY, p), status=pick([b"429 Slow", b"503 Busy"], p))


HEADERS = [
    b"\x00: x",
    b"X\xff: y",
    b": empty",
    b"X: \xff\xfe",
    b"no colon",
    b" folded: x",
    b"X: a\r\n\tb",
    b"Content-Encoding: \xff",
    b"Set-Cookie: " + b"a=b;" * 20_000,
]


def odd_headers(p: int) -> Behave:
    return lambda c: c.respond(json.dumps(GOOD).encode(), pick(HEADERS, p))


def repeats(p: int) -> Behave:
    secret = pick([KEY, QUERY], p)
    said = pick(
        [
            secret,
            json.dumps(secret).replace("/", "\\/"),
            "".join(f"\\u{ord(c):04x}" for c in secret),
            "".join(f"%{ord(c):02X}" for c in secret),
            "".join(f"&#{ord(c)};" for c in secret),
            "".join(f"&#x{ord(c):x};" for c in secret),
            "x" * 190 + secret,
        ],
        p // 2,
    )
    body = pick([said.encode(), json.dumps({"error": {"message": said}}).encode()], p // 3)
    return lambda c: c.respond(body, status=pick([b"401 No", b"200 OK", b"500 Oh"], p))


def fine(p: int) -> Behave:
    return lambda c: c.respond(json.dumps(GOOD).encode(), b"Content-Encoding: identity")


BEHAVIOURS = (
    closes,
    drips,
    never_ends,
    silent,
    large_header,
    compressed,
    shaped,
    raw,
    framed,
    redirects,
    informs,
    status_lines,
    retries,
    odd_headers,
    repeats,
    shaped,
    raw,
    compressed,
    framed,
    fine,
)


def behaviour(number: int) -> Behave:
    """Returns what the server of a number does."""
    kind = number % len(BEHAVIOURS)
    p = number // len(BEHAVIOURS)
    # A behaviour that is there twice goes on where the first one ends.
    times, before = BEHAVIOURS.count(BEHAVIOURS[kind]), BEHAVIOURS[:kind].count(BEHAVIOURS[kind])
    return BEHAVIOURS[kind](p * times + before)
