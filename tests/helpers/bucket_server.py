"""A stand-in for Google Cloud Storage's JSON API, as gcsfs, TensorStore and google-cloud-storage call it.

    with bucket_server.serve() as server:
        server.make_bucket("mine")
        monkeypatch.setenv(...)  # `environment(server.url)`: a program's way to it

Objects lie in memory: they outlive the programs that are killed. What it does as the service: generations and their
conditions, ranges, listings by pages, uploads in one piece and in several. It can fail as the service does (`faults`).
"""

import base64
import collections
import contextlib
import dataclasses
import hashlib
import http.server
import itertools
import json
import pathlib
import re
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator

_PAGE = 50  # names of a listing: few, so that pages are met
_UNSATISFIED, _NOT_MODIFIED, _FAILED = 416, 304, 412


@dataclasses.dataclass
class Object:
    """One version of an object."""

    data: bytes
    generation: int


@dataclasses.dataclass
class Server:
    """What is served.

    Attributes:
      url: where.
      buckets: objects by name, of each bucket.
      faults: called with each request's method, what it is (its URL, and of an upload " writes NAME") and its number,
        from 0; what it returns is done in the place of an answer: a status, "cut" (the connection ends within the
        answer), or None.
      requests: how many there were, by method.
    """

    url: str = ""
    buckets: dict[str, dict[str, Object]] = dataclasses.field(default_factory=dict)
    faults: Callable[[str, str, int], int | str | None] = lambda method, path, number: None
    requests: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    uploads: dict[str, list] = dataclasses.field(default_factory=dict)  # name, condition and what has come, by id
    numbers: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    generations: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))
    lock: threading.Lock = dataclasses.field(default_factory=threading.Lock)

    def make_bucket(self, name: str) -> None:
        self.buckets[name] = {}

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        return sorted(name for name in self.buckets[bucket] if name.startswith(prefix))

    def read(self, bucket: str, name: str) -> bytes:
        return self.buckets[bucket][name].data

    def write(self, bucket: str, name: str, data: bytes) -> None:
        self.buckets[bucket][name] = Object(data, next(self.generations))

    def save(self, bucket: str, folder: str, target: pathlib.Path) -> None:
        """Copies a folder of a bucket to a disk."""
        for name in self.names(bucket, f"{folder}/"):
            path = target / name.removeprefix(f"{folder}/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.read(bucket, name))

    def load(self, bucket: str, folder: str, source: pathlib.Path) -> None:
        """Copies a folder of a disk to a bucket."""
        for path in source.rglob("*"):
            if path.is_file():
                self.write(bucket, f"{folder}/{path.relative_to(source).as_posix()}", path.read_bytes())


def environment(url: str) -> dict[str, str]:
    """Returns the environment in which gs:// paths mean this server."""
    return {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
        "GOOGLE_CLOUD_PROJECT": "none",
        "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask the server by gRPC what kind of bucket it has
    }


@contextlib.contextmanager
def serve() -> Iterator[Server]:
    """Serves on a free port until the block ends."""
    server = Server()
    listener = _Listener(("127.0.0.1", 0), type("Handler", (_Handler,), {"server_state": server}))
    server.url = f"http://127.0.0.1:{listener.server_address[1]}"
    thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)


class _Refused(Exception):
    """Is answered with a status."""


class _Handler(http.server.BaseHTTPRequestHandler):
    """Answers one client; `serve` gives a subclass of it the server."""

    server_state: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def _any(self):
        with contextlib.suppress(ConnectionError):  # a client that was killed, or wants no more
            self._serve()

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _any

    def log_message(self, format, *args):
        pass

    def _serve(self):
        server, url = self.server_state, urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        body = self._body()
        server.requests[self.command] += 1
        what = urllib.parse.unquote(self.path) + self._writes(url.path, query, body)
        fault = server.faults(self.command, what, next(server.numbers))
        if isinstance(fault, int):
            return self._answer(fault, b'{"error": {"message": "a fault"}}')
        try:
            with server.lock:
                status, data, headers = self._served(url.path, query, body)
        except _Refused as refused:
            (status,) = refused.args
            data = b"" if status == _NOT_MODIFIED else json.dumps({"error": {"code": status}}).encode()
            return self._answer(status, data)
        self._answer(status, data, headers, cut=fault == "cut")

    def _writes(self, path, query, body) -> str:
        """Says which object an upload writes, which may stand in its body alone."""
        if not path.startswith("/upload/") or "upload_id" in query:
            return ""
        about = {}
        if "name" not in query:
            multipart = query.get("uploadType") == "multipart"
            about = _parts(body, self.headers["Content-Type"])[0] if multipart else json.loads(body)
        return f" writes {query.get('name') or about['name']}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, status, data=b"", headers=None, *, cut=False):
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, str(value))
        if status != _NOT_MODIFIED:
            self.send_header("Content-Length", str(len(data) + cut))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
        if cut:
            self.close_connection = True

    def _served(self, path, query, body):
        match = re.fullmatch(r"(/upload|/download)?/storage/v1/b/([^/]+)(/o(?:/(.*))?)?", path)
        if not match or match[2] not in self.server_state.buckets:
            raise _Refused(404)
        bucket, name = match[2], match[4] or ""
        if match[1] == "/upload":
            return self._upload(bucket, query, body)
        if not match[3]:
            return _json({"kind": "storage#bucket", "name": bucket, "location": "EU", "projectNumber": "1"})
        if not name:
            return _json(_listing(bucket, self.server_state.buckets[bucket], query))
        if self.command == "POST":
            return self._post(bucket, name, query, body)
        one = self._object(bucket, urllib.parse.unquote(name))
        _check(one, query)
        if self.command == "DELETE":
            del self.server_state.buckets[bucket][urllib.parse.unquote(name)]
            return 204, b"", {}
        if query.get("alt") != "media" and match[1] != "/download":
            return _json(_resource(bucket, urllib.parse.unquote(name), one))
        return self._media(one)

    def _object(self, bucket: str, name: str) -> Object:
        one = self.server_state.buckets[bucket].get(name)
        if one is None:
            raise _Refused(404)
        return one

    def _post(self, bucket, name, query, body):
        """Joins objects, or copies one."""
        if name.endswith("/compose"):
            sources = [self._object(bucket, source["name"]) for source in json.loads(body)["sourceObjects"]]
            target = urllib.parse.unquote(name.removesuffix("/compose"))
            return _json(self._put(bucket, target, b"".join(one.data for one in sources), query))
        copy = re.fullmatch(r"(.*)/(?:rewriteTo|copyTo)/b/([^/]+)/o/(.*)", name)
        if not copy:
            raise _Refused(404)
        one = self._object(bucket, urllib.parse.unquote(copy[1]))
        made = self._put(copy[2], urllib.parse.unquote(copy[3]), one.data, query)
        return _json({"done": True, "rewriteToken": None, "resource": made})

    def _media(self, one):
        size = len(one.data)
        headers = {"x-goog-generation": one.generation, "Content-Type": "application/octet-stream"}
        headers["x-goog-hash"] = f"md5={_md5(one.data)}"
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked:
            return 200, one.data, headers
        start, end = int(asked[1]), min(int(asked[2] or size), size - 1)
        if start >= size:
            raise _Refused(_UNSATISFIED)
        return 206, one.data[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{size}"}

    def _upload(self, bucket, query, body):
        uploads = self.server_state.uploads
        if "upload_id" in query:
            return self._continued(bucket, uploads[query["upload_id"]], body)
        kind = query.get("uploadType")
        if kind == "media":
            return _json(self._put(bucket, query["name"], body, query))
        if kind == "multipart":
            about, data = _parts(body, self.headers["Content-Type"])
            return _json(self._put(bucket, query.get("name") or about["name"], data, query))
        number = f"u{len(uploads)}"
        uploads[number] = [query.get("name") or json.loads(body)["name"], query, b""]
        where = f"{self.server_state.url}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={number}"
        return 200, b"", {"Location": where}

    def _continued(self, bucket, upload, body):
        name, query, come = upload
        match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", self.headers.get("Content-Range", "bytes */*"))
        assert match
        if match[1] is not None and int(match[1]) == len(come):
            upload[2] = come = come + body
        if match[2] != "*" and len(come) == int(match[2]):
            return _json(self._put(bucket, name, come, query))
        return 308, b"", {"Range": f"bytes=0-{len(come) - 1}"} if come else {}

    def _put(self, bucket, name, data, query):
        objects = self.server_state.buckets[bucket]
        _check(objects.get(name), query)
        objects[name] = Object(data, next(self.server_state.generations))
        return _resource(bucket, name, objects[name])


def _check(one: Object | None, query: dict[str, str]) -> None:
    generation = one.generation if one else 0
    if "generation" in query and int(query["generation"]) != generation:
        raise _Refused(404)
    if "ifGenerationMatch" in query and int(query["ifGenerationMatch"]) != generation:
        raise _Refused(_FAILED)
    if "ifGenerationNotMatch" in query and int(query["ifGenerationNotMatch"]) == generation:
        raise _Refused(_NOT_MODIFIED)


def _listing(bucket: str, objects: dict[str, Object], query: dict[str, str]) -> dict:
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
    start, end, last = query.get("startOffset", ""), query.get("endOffset"), query.get("pageToken", "")
    found: dict[str, Object | None] = {}
    for name in sorted(objects):
        if not name.startswith(prefix) or name < start or (end and name >= end):
            continue
        rest = name[len(prefix) :]
        folder = rest.partition(delimiter)[0] + delimiter if delimiter and delimiter in rest else None
        if folder:
            found[prefix + folder] = None
        else:
            found[name] = objects[name]
    left = [item for item in found.items() if item[0] > last]
    page = left[: min(_PAGE, int(query.get("maxResults", _PAGE)))]
    listing = {"kind": "storage#objects", "items": [_resource(bucket, name, one) for name, one in page if one]}
    listing["prefixes"] = [name for name, one in page if one is None]
    if len(page) < len(left):
        listing["nextPageToken"] = page[-1][0]
    return listing


def _resource(bucket: str, name: str, one: Object) -> dict:
    now = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime())
    return {
        "kind": "storage#object",
        "id": f"{bucket}/{name}/{one.generation}",
        "bucket": bucket,
        "name": name,
        "generation": str(one.generation),
        "metageneration": "1",
        "contentType": "application/octet-stream",
        "size": str(len(one.data)),
        "md5Hash": _md5(one.data),
        "timeCreated": now,
        "updated": now,
        "storageClass": "STANDARD",
    }


def _md5(data: bytes) -> str:
    return base64.b64encode(hashlib.md5(data).digest()).decode()


def _json(value: dict) -> tuple[int, bytes, dict]:
    return 200, json.dumps(value).encode(), {"Content-Type": "application/json"}


def _parts(body: bytes, kind: str) -> tuple[dict, bytes]:
    """Returns the two parts of an upload: what is said of the object, and the object."""
    match = re.search(r"""boundary=["']?([^"';]+)""", kind)
    assert match
    parts = []
    for part in re.split(rb"\r?\n?--" + re.escape(match[1].encode()) + rb"(?:--)?\r?\n?", body)[1:3]:
        parts.append(re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1])
    return json.loads(parts[0]), parts[1]
