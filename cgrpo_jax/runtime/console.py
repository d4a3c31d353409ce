"""What a person sees of a run: progress bars, lines, and the seconds that its stages take."""

import collections
import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TextIO, cast

import jax
import tqdm

from cgrpo_jax.runtime import files, processes, watchdog
from cgrpo_jax.runtime import text as text_lib


class Clock:
    """Seconds by stage since the last `take`, and named counts."""

    def __init__(self):
        self._seconds: dict[str, float] = collections.defaultdict(float)
        self._counts: dict[str, int] = collections.defaultdict(int)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Adds the time that the block takes to a stage, whose name it bears in a trace and in the watchdog's line."""
        started = time.monotonic()
        try:
            with watchdog.stage(stage), jax.profiler.TraceAnnotation(stage):
                yield
        finally:
            self._seconds[stage] += time.monotonic() - started

    def add(self, stage: str, seconds: float) -> None:
        """Adds time to a stage."""
        self._seconds[stage] += seconds

    def count(self, name: str, number: int) -> None:
        """Adds to a count, which is written also when it is 0."""
        self._counts[name] += number

    def take(self, tokens: Mapping[str, float]) -> dict[str, float]:
        """Returns `time/STAGE`, `tokens_per_second/STAGE` for stages with tokens, and the counts; then starts again."""
        row = {f"time/{stage}": seconds for stage, seconds in self._seconds.items()}
        row |= {
            f"tokens_per_second/{stage}": number / self._seconds[stage]
            for stage, number in tokens.items()
            if self._seconds.get(stage) and number
        }
        row |= self._counts
        self._seconds.clear()
        self._counts.clear()
        return row


def progress_bar(steps: Iterable | None = None, **kw) -> tqdm.tqdm:
    """Returns a progress bar that redraws often for a person and seldom into a log file; process 0 shows it."""
    kw |= {"desc": text_lib.one_line(kw["desc"])} if kw.get("desc") else {}
    screen = _Screen()
    return tqdm.tqdm(
        steps, file=screen, mininterval=0.2 if screen.isatty() else 10.0, disable=not processes.is_first(), **kw
    )


class _Screen:
    """Standard error as a bar writes it: where nobody reads it any more, or its disk is full, the program goes on."""

    encoding = property(lambda self: getattr(sys.stderr, "encoding", None))

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            if sys.stderr is not None:
                sys.stderr.flush()

    def isatty(self) -> bool:
        return sys.stderr is not None and sys.stderr.isatty()

    def fileno(self) -> int:  # for the width of the terminal
        if sys.stderr is None:
            raise OSError
        return sys.stderr.fileno()


@contextlib.contextmanager
def progress_reports(desc: str) -> Iterator[Callable[[int, int, str], None]]:
    """Gives a function of (parts done, parts in all, name of the next one) that shows them as a bar."""
    with progress_bar(desc=desc, leave=False) as bar:

        def report(done: int, total: int, name: str) -> None:
            watchdog.tick(f"{desc}: {name}")
            bar.total = total
            bar.set_postfix_str(name, refresh=False)
            bar.update(done - bar.n)

        yield report


def say(text: str, file: TextIO | None = None) -> None:
    """Writes a line, by default to standard error, on process 0; control characters in it as escapes.

    What standard error does not take, which a closed terminal or a full disk may be behind, is not said.
    """
    if not processes.is_first():
        return
    if file is not None:
        write(f"{text}\n", file)
    elif sys.stderr is not None:
        with contextlib.suppress(OSError):
            write(f"{text}\n", sys.stderr)


def write(text: str, file: TextIO) -> None:
    """Writes text, which may quote others, for people: control characters, and what `file` can't hold, as escapes."""
    shown = text_lib.shown(text)
    try:
        file.write(shown)
    except UnicodeEncodeError:
        encoding = file.encoding or "ascii"
        file.write(shown.encode(encoding, "backslashreplace").decode(encoding))


class _Output:
    """Standard output, of which a write that fails says so, and what comes after it goes nowhere."""

    def __init__(self, file: TextIO):
        self._file = file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, text: str) -> int:
        return self._checked(self._file.write, text)

    def flush(self) -> None:
        self._checked(self._file.flush)

    def _checked(self, do: Callable[..., Any], *given: str) -> Any:
        try:
            return do(*given)
        except BrokenPipeError:
            raise
        except OSError as error:
            drop_output()
            raise files.fault("standard output", error) from error


@contextlib.contextmanager
def output() -> Iterator[None]:
    """Within the block standard output that takes no more is an error of one line; all is written at its end.

    Raises:
      UserError: it can't be written, as a file on a full disk.
      BrokenPipeError: whoever read it has seen enough.
    """
    with contextlib.redirect_stdout(cast(TextIO, _Output(sys.stdout))):
        yield
        sys.stdout.flush()


def drop_output() -> None:
    """Lets what still waits for standard output go nowhere: Python would try again at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
