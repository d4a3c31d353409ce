"""Requests that call back: several at once, one after another, and none that is lost where a callback raises."""

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Found(NamedTuple):
    """What a request has found, None where it has found nothing, and why; `timed_out`: a program ran out of time."""

    value: Any
    failure: str = ""
    timed_out: bool = False


Done = Callable[[Found], None]
Request = Callable[[Done], None]


def bug(error: Exception) -> str:
    """Returns a mistake of ours as a failure."""
    return f"error {type(error).__name__}: {error}"


def or_failed(done: Callable, step: Callable) -> Callable:
    """Returns a callback that goes on with `step`, or, where that raises or a request has failed, is done.

    What a callback raises is lost: who waits for `done` would wait for ever.
    """

    def arrived(found):
        several = not isinstance(found, Found)
        if not several and found.value is None:
            done(found)
            return
        try:
            step(found)
        except Exception as error:  # noqa: BLE001 - as in _ask
            failed = Found(None, bug(error))
            done([failed] if several else failed)

    return arrived


def gather(requests: Sequence[Request], done: Callable[[list[Found]], None]) -> None:
    """Starts several requests, each of which calls back with its result; calls `done` with all results, in order."""
    results: list = [None] * len(requests)
    left, lock = len(requests), threading.Lock()

    def arrived(number: int, result: Found) -> None:
        nonlocal left
        with lock:
            results[number] = result
            left -= 1
            last = not left
        if last:
            done(results)

    if not requests:
        done([])
    for number, one in enumerate(requests):
        one(functools.partial(arrived, number))
