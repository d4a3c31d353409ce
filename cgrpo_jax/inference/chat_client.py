"""A client of an OpenAI-compatible chat completions endpoint (vLLM, SGLang, OpenAI, ...): of a critic or a judge.

It is asked while the accelerators decode, so nothing here blocks: `ChatClient.submit` gives a future at once, and one
daemon thread with an event loop does the rest. Whatever the server does, the future gets an `Answer`: a critique that
could not be had is a category to count, not an exception that ends the run.
"""

import asyncio
import collections
import dataclasses
import logging
import math
import random
import threading
from collections.abc import Mapping, Sequence
from concurrent import futures

import httpx

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import chat_protocol
from cgrpo_jax.inference.chat_protocol import Dialect, FailedError

OVER_BUDGET = "over budget"  # the failure of a request that its budget does not allow
_CLOSING_SECONDS = 1.0
_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
      text: what the model wrote, None if the request failed.
      truncated: the server stopped at `max_tokens`.
      completion_tokens: tokens of `text` as the server counts them, 0 if it does not say.
      prompt_tokens: tokens of the prompt, likewise.
      attempts: how often the endpoint was asked, 0 if not at all.
      failure: None, or why the last attempt failed: "timeout", "unreachable", "connection broken", "garbage" (a success
        that holds no completion, is compressed, or far longer than was asked for), "status 401" and the like, "over
        budget", "closed", "error NAME" (a bug of ours).
    """

    text: str | None
    truncated: bool
    completion_tokens: int
    prompt_tokens: int
    attempts: int
    failure: str | None


class ChatClient:
    """Asks an endpoint for completions in the background.

    Refused connections, time-outs, garbage and the statuses 408, 409, 429 and 5xx are tried again after
    backoff * 2^(attempt - 1) * U(0.5, 1) seconds, or as late as `Retry-After` asks; both at most `max_backoff`.
    The first failure of each category is logged with what the server says. Redirects are not followed, since they would
    take the key along.

    Example:
      with ChatClient("http://localhost:8000/v1", model="Qwen/Qwen3-8B", key_variable="CRITIC_KEY") as critic:
        future = critic.submit("2+2=5. Right?", max_tokens=64, temperature=0.0, top_p=1.0, seed=0)
        future.result()    # Answer(text="Conclusion: wrong [END]", truncated=False, completion_tokens=6, ...)

    Args:
      url: where the API starts, or its chat completions themselves.
      model: the name that the endpoint knows the model by.
      key_variable: the environment variable that holds the API key; "" sends none.
      concurrency: requests under way at one time; those that wait for their next attempt are not under way.
      timeout: seconds for one attempt, from its connection to the last byte of its response.
      max_attempts: attempts of one request.
      backoff: seconds before the second attempt.
      max_backoff: seconds before any attempt.
      max_requests: requests over the life of the client, however often each is tried; 0 is no limit.
      max_tokens: completion tokens over the life of the client; 0 is no limit. No attempt starts once they are spent,
        so that at most those under way overshoot. A completion without usage counts as its `max_tokens`; what a server
        wrote for an attempt that was cut off is not known and not counted.
      dialect: what differs between endpoints in a request's body.
      name: what it is called in messages: who answers at the endpoint.

    Raises:
      UserError: a url that is not http(s) or holds a secret, a variable that is not set, a number out of range.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str,
        key_variable: str = "",
        concurrency: int = 16,
        timeout: float = 60.0,
        max_attempts: int = 4,
        backoff: float = 1.0,
        max_backoff: float = 60.0,
        max_requests: int = 0,
        max_tokens: int = 0,
        dialect: Dialect | None = None,
        name: str = "critic",
    ):
        for option, value in (("concurrency", concurrency), ("timeout", timeout), ("max_attempts", max_attempts)):
            if not 0 < value < math.inf:
                raise UserError(f"{option} {value} of the {name} is out of range; use a positive number.")
        limits = (("max_requests", max_requests), ("max_tokens", max_tokens))
        for option, value in (("backoff", backoff), ("max_backoff", max_backoff), *limits):
            if not 0 <= value < math.inf:
                raise UserError(f"{option} {value} of the {name} is out of range; use 0 or more.")
        if not model:
            raise UserError(f"the {name} has no model; give the name that its endpoint knows it by.")
        self._url, self._model, self._name = chat_protocol.endpoint(url, owner=name), model, name
        self._key = chat_protocol.read_key(key_variable, owner=name)
        self._redacted = chat_protocol.Redactor([self._key, *chat_protocol.secrets_of(self._url)])
        self._dialect = dialect or Dialect()
        self._timeout, self._max_attempts = timeout, max_attempts
        self._backoff, self._max_backoff = backoff, max_backoff
        self._max_requests, self._max_tokens = max_requests, max_tokens
        self._random = random.Random()  # not the global one, whose state belongs to the run
        self._client = chat_protocol.make_client(self._key)

        self._lock = threading.Lock()  # guards everything below, which several threads touch
        self._counts = collections.Counter()
        self._accepted = self._spent = 0
        self._logged = set()
        self._pending = {}
        self._closed = False

        # Both belong to the loop and bind to it when first awaited.
        self._slots, self._stopping = asyncio.Semaphore(concurrency), asyncio.Event()
        self._loop = _EventLoop()
        # A daemon, which does not keep the interpreter alive where close() is never called.
        self._thread = threading.Thread(target=self._serve, name="chat-client", daemon=True)
        self._thread.start()

    def __repr__(self):
        return f"ChatClient({chat_protocol.shown(self._url)!r}, model={self._model!r})"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @property
    def counts(self) -> collections.Counter:
        """A copy of the counts since the start.

        "requests" = "answers" + all "failed/CATEGORY" + those pending; "attempts" went out to the endpoint, each
        "retried/CATEGORY" was followed by another; "truncated" answers; "prompt_tokens" and "completion_tokens" as
        the server reports them, those of garbage included.
        """
        with self._lock:
            return self._counts.copy()

    def submit(
        self,
        prompt: str | Sequence[Mapping[str, str]],
        *,
        system: str = "",
        max_tokens: int,
        temperature: float,
        top_p: float,
        seed: int,
    ) -> futures.Future[Answer]:
        """Asks for one completion; the future, which can't be cancelled, gets an `Answer` and never an exception.

        Args:
          prompt: what the user says, or messages such as `[{"role": "user", "content": "2+2=5. Right?"}]`.
          system: a system message to put first, if any.
          max_tokens: the longest completion, in tokens.
          temperature: of sampling; 0 is greedy.
          top_p: probability mass to sample from, at most 1.
          seed: of the server's sampling, where it takes one.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(row) for row in prompt]
        if system:
            messages.insert(0, {"role": "system", "content": system})
        data = self._dialect.body(
            self._model, messages, max_tokens=max_tokens, temperature=temperature, top_p=top_p, seed=seed
        )

        future = futures.Future()
        future.set_running_or_notify_cancel()
        with self._lock:
            self._counts["requests"] += 1
            failure = "closed" if self._closed else OVER_BUDGET if self._over_budget(new=True) else None
            if failure is None:
                self._accepted += 1
                coroutine = self._ask(future, data, int(max_tokens))
                self._pending[future] = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
            else:
                self._counts[f"failed/{failure}"] += 1
        if failure is not None:
            future.set_result(_failed_answer(failure, attempts=0))
        return future

    def close(self):
        """Drops the requests under way, whose futures get the failure "closed", and ends the thread."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._loop.call_soon_threadsafe(self._stopping.set)
        self._abandon()
        if threading.current_thread() is not self._thread:  # a future's callback may close, too
            self._thread.join(_CLOSING_SECONDS)

    def _abandon(self):
        with self._lock:
            self._closed = True
            pending = list(self._pending)
        for future in pending:
            self._settle(future, _failed_answer("closed", attempts=0))

    def _serve(self):
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            try:
                runner.run(self._until_stopped())
            finally:
                self._abandon()  # while the loop is still open: no submit() may find it closed

    async def _until_stopped(self):
        await self._stopping.wait()
        under_way = asyncio.all_tasks() - {asyncio.current_task()}
        for task in under_way:
            task.cancel()
        await asyncio.gather(*under_way, return_exceptions=True)
        await self._client.aclose()

    def _over_budget(self, new):
        """Is the budget spent? Attempts of an accepted request, not `new`, are bounded by tokens alone."""
        requests = new and 0 < self._max_requests <= self._accepted
        return requests or 0 < self._max_tokens <= self._spent

    def _count(self, name):
        with self._lock:
            self._counts[name] += 1

    def _settle(self, future, answer):
        with self._lock:
            if self._pending.pop(future, None) is None:
                return  # close() came first
            self._counts["answers" if answer.failure is None else f"failed/{answer.failure}"] += 1
            self._counts["truncated"] += answer.truncated
        future.set_result(answer)  # outside the lock: its callbacks may submit

    async def _ask(self, future, data, limit):
        """Attempts one request until it is answered or given up."""
        for attempt in range(1, self._max_attempts + 1):
            async with self._slots:
                with self._lock:
                    over = self._over_budget(new=False)
                if over:
                    answer = _failed_answer(OVER_BUDGET, attempts=attempt - 1)
                    break
                self._count("attempts")
                try:
                    usage, text, truncated = await self._attempt(data, limit)
                    tokens = usage.get("completion_tokens", 0), usage.get("prompt_tokens", 0)
                    answer = Answer(text, truncated, *tokens, attempt, None)
                    break
                except FailedError as error:
                    failed = error
                except Exception as error:  # noqa: BLE001 - a critique less, not the end of the run
                    failed = FailedError(f"error {type(error).__name__}", "unforeseen", retry=False)
            self._log_first(failed)
            answer = _failed_answer(failed.category, attempts=attempt)
            if not failed.retry or attempt == self._max_attempts:
                break
            self._count(f"retried/{failed.category}")
            wait = self._backoff * 2 ** min(attempt - 1, 30) * self._random.uniform(0.5, 1.0)
            await asyncio.sleep(min(max(wait, failed.wait), self._max_backoff))
        self._settle(future, answer)

    async def _attempt(self, data, limit):
        """Asks once: the usage, the text, whether it was cut off.

        Raises:
          FailedError: there is no answer.
        """
        try:
            async with asyncio.timeout(self._timeout):  # httpx's own limits are between bytes, not in total
                async with self._client.stream("POST", self._url, content=data) as response:
                    content = await chat_protocol.read(response)
        except TimeoutError:
            raise FailedError("timeout", f"no whole response in {self._timeout:g} s") from None
        except (httpx.ConnectError, httpx.ProxyError) as error:
            raise FailedError("unreachable", str(error)) from None
        except httpx.TransportError as error:
            raise FailedError("connection broken", str(error) or type(error).__name__) from None
        reply = chat_protocol.parse(response, content)
        # Before the reply is looked into: garbage was paid for, too.
        usage = chat_protocol.usage(reply)
        with self._lock:
            self._counts.update(usage)
            self._spent += usage.get("completion_tokens", 0)
        text, truncated = chat_protocol.completion(reply, max_tokens=limit)
        if "completion_tokens" not in usage:
            with self._lock:
                self._spent += limit
        return usage, text, truncated

    def _log_first(self, failed):
        """Logs the first failure of each category."""
        with self._lock:
            if failed.category in self._logged:
                return
            self._logged.add(failed.category)
        # Servers repeat a key that they refuse. It goes before anything is cut, which might leave half of it.
        detail = self._redacted(failed.detail)
        detail = "".join(c if c.isprintable() else " " for c in detail)[:200]
        _logger.warning(
            "%s at %s: %s (%s); counted, not said again.", self._name, chat_protocol.shown(self._url), failed, detail
        )


class _EventLoop(asyncio.SelectorEventLoop):
    """Looks up host names in daemon threads.

    The executor that asyncio takes for it is joined when the interpreter exits, however long a dead name server takes.
    """

    def run_in_executor(self, executor, func, *args):
        future = futures.Future()

        def work():
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(func(*args))
                except Exception as error:  # noqa: BLE001 - goes to whoever awaits it
                    future.set_exception(error)

        threading.Thread(target=work, name="chat-client-lookup", daemon=True).start()
        return asyncio.wrap_future(future, loop=self)


def _failed_answer(failure, *, attempts):
    return Answer(None, False, 0, 0, attempts, failure)
