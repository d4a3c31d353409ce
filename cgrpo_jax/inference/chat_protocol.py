"""The wire of a chat completions endpoint: where it is, the key, and what its responses say."""

import dataclasses
import email.utils
import json
import logging
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import text as text_lib

MAX_BYTES = 4 << 20  # of one response; a long critique has a few ten thousand
MAX_CHARACTERS = 128  # of a text, for each token that it may have: the longest tokens are runs of spaces and of dashes
_SAID_BYTES = 20_000  # of a response, in which what it says of a failure is looked for
# Of a URL's query, what is no secret. All else is an environment variable: config.json keeps the URL.
_PLAIN = ("api-version",)
_VARIABLE = re.compile(r"\$\{?([A-Za-z_][A-Za-z0-9_]*)\}?")
# Fields of a request's body that are ours.
OWN_FIELDS = (
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream", "n",
)  # fmt: skip
MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
_PATH = "/chat/completions"
_THOUGHTS = ("reasoning_content", "reasoning")
_RETRIED = {408, 409, 429, *range(500, 600)}


class FailedError(Exception):
    """An attempt that gave no answer.

    Args:
      category: why, in a few words that stay the same and can be counted.
      detail: what the server says, or what can be said of it.
      retry: another attempt may do better.
      wait: seconds until then that the server asks for.
    """

    def __init__(self, category: str, detail: str, *, retry: bool = True, wait: float = 0.0):
        super().__init__(category)
        self.category, self.detail, self.retry, self.wait = category, detail, retry, wait


@dataclasses.dataclass(frozen=True)
class Dialect:
    """What differs between endpoints in a request's body.

    Attributes:
      max_tokens_field: what the longest completion is called.
      send_temperature: whether temperature and top_p are sent; some models refuse them.
      extra_body: further fields.
    """

    max_tokens_field: str = "max_tokens"
    send_temperature: bool = True
    extra_body: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def body(
        self,
        model: str,
        messages: Sequence[Mapping[str, str]],
        *,
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> bytes:
        """Returns a request's body, in pure ASCII: a lone surrogate in the policy's text has no UTF-8."""
        fields = {"model": model, "messages": messages, self.max_tokens_field: int(max_tokens)}
        if self.send_temperature:
            fields |= {"temperature": float(temperature), "top_p": float(top_p)}
        return json.dumps(fields | {"seed": int(seed)} | dict(self.extra_body)).encode("ascii")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def extra_body(value: str) -> dict[str, Any]:
    """Returns the further fields of a request's body that the value of a key gives.

    Example:
      >>> extra_body('{"reasoning_effort": "low"}'), extra_body("")
      ({'reasoning_effort': 'low'}, {})

    Raises:
      UserError: it is no JSON object, or has a field that is ours.
    """
    try:
        found = json.loads(value or "{}", parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise UserError(
            f'{text_lib.quoted(value)} is no JSON object; write one such as \'{{"reasoning_effort": "low"}}\'.'
        )
    if own := [name for name in OWN_FIELDS if name in found]:
        raise UserError(f"{own[0]!r} is no extra field: other keys say it, or it is always the same; leave it out.")
    return found


def endpoint(url: str, *, owner: str = "critic") -> httpx.URL:
    """Where to post: `url` with `/chat/completions` at its end, and environment variables in its query put in.

    Example:
      >>> endpoint("http://localhost:8000/v1")
      URL('http://localhost:8000/v1/chat/completions')

    Raises:
      UserError: as `check_url`, or a variable in its query is not set.
    """
    parsed = check_url(url, owner=owner)
    path = parsed.path.rstrip("/")
    parsed = parsed.copy_with(path=path if path.endswith(_PATH) else path + _PATH)
    if not parsed.query:
        return parsed
    values = []
    for name, value in parsed.params.multi_items():
        named = _VARIABLE.fullmatch(value)
        values.append((name, read_key(named[1], owner=owner) if named else value))
    return parsed.copy_with(params=values)


def check_url(url: str, *, owner: str = "critic") -> httpx.URL:
    """Returns an address as it is written, which holds no secret.

    Raises:
      UserError: it is not http(s), holds a password, or a query whose values may be secret.
    """
    given = masked(url)
    try:
        parsed = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):  # the latter: half of a surrogate pair
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"{owner}'s url {given!r} is not http(s); use one such as 'http://localhost:8000/v1'.")
    check_secrets(url, owner=owner)
    return parsed


def check_secrets(url: str, *, owner: str = "critic") -> None:
    """Checks that what is given as an address holds no secret, whatever else is wrong with it: config.json keeps it.

    Raises:
      UserError: it has a password, or a query whose values may be secret.
    """
    parts = re.fullmatch(r"([^?#]*)(?:\?([^#]*))?(#.*)?", url, re.DOTALL)
    assert parts, "any text has these parts"
    if "@" in parts[1]:
        raise UserError(
            f"{owner}'s url {masked(url)!r} holds a password; give a key by an environment variable instead."
        )
    if parts[3]:
        raise UserError(f"{owner}'s url {masked(url)!r} has a part after #, which is never sent; leave it out.")
    for name, value in httpx.QueryParams(parts[2]).multi_items():
        if name not in _PLAIN and not _VARIABLE.fullmatch(value):
            raise UserError(
                f"{owner}'s url {masked(url)!r} has values in its query, which config.json would keep; put each "
                f"in an environment variable and name that, as in ?key=$NAME (only {', '.join(_PLAIN)} stands as it "
                "is)."
            )


def secrets_of(url: httpx.URL) -> list[str]:
    """Returns the values in a query that may be secret."""
    return [value for name, value in url.params.multi_items() if name not in _PLAIN and value]


def masked(url: str) -> str:
    """Returns a URL as it was given, for a message: without what may be secret, also where it is no valid one."""
    head, slashes, rest = url.partition("//")
    rest = "***@" + rest.rpartition("@")[2] if "@" in rest else rest
    cut = re.match(r"[^?#]*", head + slashes + rest)
    kept = cut[0] if cut else ""
    return text_lib.shown(kept[:200] + ("?***" if kept != head + slashes + rest else ""))


def shown(url: httpx.URL) -> str:
    """A URL without its query, which may hold secrets."""
    return str(url.copy_with(query=None, fragment=None))


class Redactor:
    """Takes secrets out of what a server says, also where it has escaped them.

    Args:
      secrets: each a text; empty ones are none.
    """

    def __init__(self, secrets: Sequence[str]):
        found = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        spellings = ["".join(_spellings(character) for character in secret) for secret in found]
        self._found = re.compile("|".join(spellings) or "(?!)")

    def __call__(self, text: str) -> str:
        return self._found.sub("***", text)


def _spellings(character: str) -> str:
    """A pattern of a character as JSON, a URL or HTML may write it."""
    code = ord(character)
    plain, bytes_ = re.escape(character), "".join(f"%{byte:02x}" for byte in character.encode(errors="replace"))
    written = [plain, rf"\\{plain}", rf"(?i:\\{{1,4}}u{code:04x}|&#0*{code};|&#x0*{code:x};|{bytes_})"]
    return f"(?:{'|'.join(written)})"


class _WithoutQueries(logging.Filter):
    """httpx logs the address of each request as it is: with its query."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(shown(one) if isinstance(one, httpx.URL) else one for one in record.args)
        return True


logging.getLogger("httpx").addFilter(_WithoutQueries())
if logging.getLogger("httpcore").level == logging.NOTSET:  # whose details are headers, in which a server may say a key
    logging.getLogger("httpcore").setLevel(logging.INFO)


def read_key(variable: str, *, owner: str = "critic") -> str:
    """The API key from an environment variable, "" if `variable` is.

    Raises:
      UserError: the variable is not set, or holds what can't be sent.
    """
    if not variable:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(f"environment variable {variable!r} for the {owner}'s key is not set; set it or name none.")
    # Anything else would only fail when sent, in errors that quote it.
    if not re.fullmatch(r"[!-~]+", key):
        raise UserError(f"environment variable {variable!r} holds no key of printable ASCII without spaces; fix it.")
    return key


def make_client(key: str) -> httpx.AsyncClient:
    """A client that sends the key, follows no redirect and has no limits: `ChatClient` bounds connections and time.

    Raises:
      UserError: proxies or certificates that the environment names can't be used.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    if key:
        headers["Authorization"] = f"Bearer {key}"
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    try:
        return httpx.AsyncClient(headers=headers, timeout=None, limits=limits, follow_redirects=False)
    except (ValueError, ImportError, OSError, httpx.InvalidURL) as error:
        # It may quote a proxy's password.
        raise UserError(
            f"proxies or certificates named in the environment can't be used ({type(error).__name__}); "
            "fix HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, SSL_CERT_FILE or SSL_CERT_DIR."
        ) from None


async def read(response: httpx.Response) -> bytes:
    """The body of a response as it was sent, as far as the first chunk beyond MAX_BYTES.

    Raises:
      FailedError: it is compressed, which was not asked for: 298 bytes can become eight gigabytes.
    """
    encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise _failed(response, "garbage", f"the response is compressed ({encoding[:40]}), which was not asked for")
    content = bytearray()
    async for chunk in response.aiter_raw():
        content += chunk
        if len(content) > MAX_BYTES:
            break
    return bytes(content)


def parse(response: httpx.Response, content: bytes):
    """The JSON of a successful response.

    Raises:
      FailedError: another status than success, too long a body, or no JSON.
    """
    if not response.is_success:
        raise _failed(response, "", _said(content) or response.reason_phrase)
    if len(content) > MAX_BYTES:
        raise FailedError("garbage", f"a response of over {MAX_BYTES >> 20} MiB")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise FailedError("garbage", f"no JSON: {_said(content) or 'nothing'}") from None


def _failed(response: httpx.Response, category: str, detail: str) -> FailedError:
    """The failure of a response: its status says which, of a success the category."""
    if response.is_success:
        return FailedError(category, detail)
    status = response.status_code
    wait = seconds(response.headers.get("Retry-After", ""))
    return FailedError(f"status {status}", detail, retry=status in _RETRIED, wait=wait)


def usage(reply) -> dict[str, int]:
    """The "completion_tokens" and "prompt_tokens" of a reply, each if the server gives it."""
    given = {name: _get(_get(reply, "usage"), name) for name in ("completion_tokens", "prompt_tokens")}
    return {name: value for name, value in given.items() if type(value) is int and 0 <= value < 1 << 31}


def completion(reply, *, max_tokens: int) -> tuple[str, bool]:
    """The text of the first choice, and whether it was cut off at its longest.

    Args:
      reply: what the endpoint answered.
      max_tokens: that were asked for.

    Raises:
      FailedError: there is none, or it is far longer than was asked for.
    """
    choices = _get(reply, "choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = _get(choice, "message")
    text = _get(message, "content")
    if text is None and _get(choice, "finish_reason") == "length" and _thoughts(message):
        return "", True  # cut off while it thought
    if not isinstance(text, str):
        reason = _get(choice, "finish_reason")
        said = _error_message(reply) or f"finish_reason {reason if isinstance(reason, str) else None}"
        raise FailedError("garbage", f"no text in choices[0].message.content: {said}")
    if len(text) > MAX_CHARACTERS * max_tokens:
        raise FailedError("garbage", f"a text of {len(text)} characters where {max_tokens} tokens were asked for")
    return text_lib.clean(text), _get(choice, "finish_reason") == "length"


def seconds(retry_after: str) -> float:
    """A `Retry-After` in seconds from now, 0 if it is neither a number nor a date, or past.

    Example:
      >>> seconds("2")
      2.0
    """
    try:
        wait = float(retry_after)
    except ValueError:
        try:
            wait = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (ValueError, OverflowError):
            return 0.0
    return wait if wait > 0 else 0.0


def _thoughts(message) -> str:
    """What servers that part thinking from what is said give of the former."""
    return next((text for name in _THOUGHTS if isinstance(text := _get(message, name), str)), "")


def _get(record, key):
    return record.get(key) if isinstance(record, dict) else None


def _error_message(reply):
    """The text in `{"error": {"message": ...}}`, "" if there is none."""
    message = _get(_get(reply, "error"), "message")
    return message if isinstance(message, str) else ""


def _said(content):
    """What a server says of a failure: its error's message, or the body as it is."""
    if len(content) > _SAID_BYTES:
        return content[:_SAID_BYTES].decode(errors="replace")
    try:
        reply = json.loads(content)
        # Written again, without the escapes behind which a key would not be found.
        return _error_message(reply) or json.dumps(reply, ensure_ascii=False)
    except (ValueError, RecursionError):
        return content.decode(errors="replace")
