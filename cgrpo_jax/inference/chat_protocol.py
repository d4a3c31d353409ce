"""The wire of a chat completions endpoint: where it is, the key, and what its responses say."""

import email.utils
import json
import os
import re
import time

import httpx

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import text as text_lib

MAX_BYTES = 8 << 20  # of one response; a long critique has a few ten thousand
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


def endpoint(url: str, *, owner: str = "critic") -> httpx.URL:
    """Where to post: `url` with `/chat/completions` at its end.

    Example:
      >>> endpoint("http://localhost:8000/v1")
      URL('http://localhost:8000/v1/chat/completions')

    Raises:
      UserError: it is not http(s), or holds a password.
    """
    given = re.sub(r"//[^/]*@", "//***@", url)
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL:
        parsed = None
    if parsed is None or parsed.scheme not in ("http", "https") or not parsed.host:
        raise UserError(f"{owner}'s url {given!r} is not http(s); use one such as 'http://localhost:8000/v1'.")
    if parsed.userinfo:
        raise UserError(f"{owner}'s url {given!r} holds a password; give a key by an environment variable instead.")
    path = parsed.path.rstrip("/")
    return parsed.copy_with(path=path if path.endswith(_PATH) else path + _PATH)


def shown(url: httpx.URL) -> str:
    """A URL without its query, which may hold secrets."""
    return str(url.copy_with(query=None))


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
    """The body of a response, as far as the first chunk beyond MAX_BYTES."""
    content = bytearray()
    async for chunk in response.aiter_bytes():
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
        status = response.status_code
        wait = seconds(response.headers.get("Retry-After", ""))
        raise FailedError(
            f"status {status}", _said(content) or response.reason_phrase, retry=status in _RETRIED, wait=wait
        )
    if len(content) > MAX_BYTES:
        raise FailedError("garbage", f"a response of over {MAX_BYTES >> 20} MiB")
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        raise FailedError("garbage", f"no JSON: {_said(content) or 'nothing'}") from None


def usage(reply) -> dict[str, int]:
    """The "completion_tokens" and "prompt_tokens" of a reply, each if the server gives it."""
    given = {name: _get(_get(reply, "usage"), name) for name in ("completion_tokens", "prompt_tokens")}
    return {name: value for name, value in given.items() if type(value) is int and 0 <= value < 1 << 31}


def completion(reply) -> tuple[str, bool]:
    """The text of the first choice, and whether it was cut off at its longest.

    Raises:
      FailedError: there is none.
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
    try:
        reply = json.loads(content)
        # Written again, without the escapes behind which a key would not be found.
        return _error_message(reply) or json.dumps(reply, ensure_ascii=False)
    except (ValueError, RecursionError):
        return content[:100_000].decode(errors="replace")
