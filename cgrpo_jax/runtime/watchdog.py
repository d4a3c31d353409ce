"""Ends a process that hangs, with one line: nothing has ended for too long, or another process is gone.

What goes on calls `tick` (a step that all processes do alike: an engine's tick, an update) or `alive` (a file is read,
a row is graded, a program is compiled). A thread looks how long ago the last one was, here or on a process that this
one may wait for. It ends the process itself, with status `STATUS`:
the main thread may hang in a collective operation, from which nothing else gets it out. What was saved stays.

Processes also say how far they are, through the key-value store (key_values.py), so that the line names who is behind;
one that says nothing for `SILENT_SECONDS` is taken to be dead. The time counts in which this process runs: one that was
stopped and goes on, as by Ctrl-Z, does not end for that.
"""

import atexit
import contextlib
import dataclasses
import os
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from cgrpo_jax.runtime import agreement, key_values, text

STATUS = 76  # exit status of a process that hung, or whose fellow did; `signals.stopped_status` and 2 are others
SILENT_SECONDS = 40  # below half of `processes.HEARTBEAT_SECONDS`, when JAX ends the processes, with more lines
_LOOK_SECONDS = 2.0  # between two looks of the thread, and two times that a process says how far it is
_ENDED_SECONDS = 10  # that this process has to notice by itself that another one has ended with a mistake


@dataclasses.dataclass(frozen=True)
class Limits:
    """Seconds in which nothing may end: without a program that is being compiled, and with one; 0: no limit."""

    stall: float = 0.0
    compile: float = 0.0


@dataclasses.dataclass(frozen=True)
class State:
    """How far this process is.

    Attributes:
      steps: ticks, which all processes count alike.
      events: all that has ended, also what others may do more or less often.
      stage: what is done.
      iteration: of a training run; -1 outside one.
      compiling: a program is being compiled.
    """

    steps: int = 0
    events: int = 0
    stage: str = "starting"
    iteration: int = -1
    compiling: bool = False

    @property
    def where(self) -> str:
        return self.stage + (f" of iteration {self.iteration}" if self.iteration >= 0 else "")


_state = State()
_limits = Limits()
_lock = threading.Lock()  # of `_state`: programs may be compiled in other threads
_ending = threading.RLock()  # held by whoever says why the process ends, so that one line is printed
_watching: threading.Thread | None = None


# --- what goes on says so -----------------------------------------------------------------------------------------


def tick(stage: str = "") -> None:
    """Says that a step has ended that all processes do alike, and which stage comes; by default the same one."""
    _update(stage=stage or _state.stage, step=True)


def alive() -> None:
    """Says that something has ended that others may do at other times, such as reading a file."""
    _update()


def iteration(number: int) -> None:
    """Says which iteration of training begins; -1: none."""
    _update(iteration=number, stage="bookkeeping", step=True)


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    """Says that a stage begins and ends; the one around it then goes on."""
    before = _state.stage
    tick(name)
    try:
        yield
    finally:
        tick(before)


def _update(*, step: bool = False, compiling: bool = False, **changes: Any) -> None:
    global _state
    with _lock:
        counts = {"steps": _state.steps + step, "events": _state.events + 1}
        _state = dataclasses.replace(_state, **counts, compiling=compiling, **changes)


def _on_compile(event: str, duration_secs: float, **_: str | int) -> None:
    """Listens to JAX: a program has been lowered, and is compiled next; or it has been compiled."""
    if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
        _update(compiling=True)
    elif event == "/jax/core/compile/backend_compile_duration":
        alive()


# --- the thread ---------------------------------------------------------------------------------------------------


class Watch:
    """How long ago this process and the others were last seen to go on; no thread, no clock.

    Args:
      here: number of this process.
    """

    def __init__(self, here: int = 0):
        self._here = here
        self._events, self._idle = -1, 0.0
        self._said: dict[int, tuple[Any, float]] = {}  # of each process, what it said last and how long ago
        self._reading = 0.0  # how long ago the store was read last
        self._ended = 0.0  # how long ago a process was first seen to have ended with a mistake

    def look(
        self,
        seconds: float,
        state: State,
        limits: Limits,
        *,
        said: Mapping[int, Mapping[str, Any]] | None = None,
        ended: Mapping[int, str] | None = None,
    ) -> tuple[str, int] | None:
        """Returns why the process is to end, in one line, and its exit status; None if it need not.

        Args:
          seconds: since the last look, in which this process ran.
          state: of this process.
          limits: of its stall.
          said: what the processes say of themselves, `State` as a dict and `closed`; None where it can't be read.
          ended: why processes have ended with a mistake.
        """
        self._idle = 0.0 if state.events != self._events else self._idle + seconds
        self._events = state.events
        self._reading += seconds
        if said is not None:
            for process, one in said.items():
                last, age = self._said.get(process, (None, 0.0))
                self._said[process] = (one, 0.0 if one != last else age + self._reading)
                if last and one["events"] != last["events"] and process != self._here:  # which this one may wait for
                    self._idle = 0.0
            self._reading = 0.0
        self._ended = self._ended + seconds if ended else 0.0
        if ended and self._ended > _ENDED_SECONDS:
            return agreement.why_ended(ended), 2
        if gone := self._gone():
            return f"{gone}, while this process was in {state.where}; {_LEFT}", STATUS
        # Others may compile what this process has read from its cache.
        compiling = state.compiling or any(one["compiling"] and not one["closed"] for one, _ in self._said.values())
        limit, key = (limits.compile, "compile") if compiling else (limits.stall, "stall")
        if limit and self._idle > limit:
            doing = "a program is being compiled" if compiling else "nothing has ended"
            return (
                f"{doing} for {self._idle:.0f} s in {state.where} (compute.{key}_timeout {limit:g})"
                f"{self._behind(state)}; {_LEFT}",
                STATUS,
            )
        return None

    def _gone(self) -> str:
        if self._reading > SILENT_SECONDS:
            return f"process 0 has not answered for {self._reading:.0f} s"
        for process, (one, age) in self._said.items():
            if process != self._here and age > SILENT_SECONDS and not one["closed"]:
                return f"process {process}, last in {_where(one)}, has said nothing for {age:.0f} s"
        return ""

    def _behind(self, state: State) -> str:
        """Returns which process has done fewer steps than the others."""
        steps = {process: one["steps"] for process, (one, _) in self._said.items() if not one["closed"]}
        steps[self._here] = state.steps
        if len(steps) < 2:
            return ""
        least, most = min(steps.values()), max(steps.values())
        if least == most:
            return "; no process is behind"
        who = [process for process, number in sorted(steps.items()) if number == least]
        if self._here in who:
            return f"; this process, {self._here}, is behind"
        return f"; process {who[0]} is behind, in {_where(self._said[who[0]][0])}"


_LEFT = "what was saved stays, and the same command goes on from it"


def _where(said: Mapping[str, Any]) -> str:
    return State(stage=said["stage"], iteration=said["iteration"]).where


class _Talk(threading.Thread):
    """Says how far this process is, and hears how far the others are; may hang where process 0 does.

    Attributes:
      heard: what was last read, and how often something was.
    """

    def __init__(self):
        super().__init__(name="watchdog-talk", daemon=True)
        self.heard: tuple[int, dict[int, Any], dict[int, str]] = (0, {}, {})
        self._closing = threading.Event()

    def run(self) -> None:
        for number in range(1, 2**62):
            closed = self._closing.wait(_LOOK_SECONDS)
            try:
                key_values.put("state", dataclasses.asdict(_state) | {"beat": number, "closed": closed})
                ended = key_values.read(key_values.ENDED)
                ended.pop(key_values.place()[0], None)
                self.heard = number, key_values.read("state"), ended
            except (jax.errors.JaxRuntimeError, ValueError):  # process 0 is gone or hangs; the watch sees how long
                pass
            if closed:
                return

    def close(self) -> None:
        """Says that this process says no more."""
        self._closing.set()
        self.join(timeout=5)


def _watch(talk: _Talk | None) -> None:
    watch, last, heard = Watch(key_values.place()[0]), time.monotonic(), 0
    while True:
        time.sleep(_LOOK_SECONDS)
        now = time.monotonic()
        # A process that was stopped, or a machine that slept, finds a long time gone by.
        seconds, last = min(now - last, 2 * _LOOK_SECONDS), now
        said, ended = {}, {}
        if talk:
            number, said, ended = talk.heard
            said, heard = (None if number == heard else said), number
        if found := watch.look(seconds, _state, _limits, said=said, ended=ended):
            end(*found)


def end(line: str, status: int) -> None:
    """Ends the process from another thread, whatever the main thread does, with `error: LINE`."""
    with _ending:  # not where the main thread says why it ends
        # Not `sys.stderr`, whose lock the main thread may hold.
        os.write(2, f"\nerror: {text.one_line(line)}\n".encode(errors="replace"))
        os._exit(status)


def leave_to_main_thread() -> None:
    """Lets the main thread alone say why the process ends."""
    _ending.acquire(timeout=5)


@contextlib.contextmanager
def limits(*, stall: float, compile: float) -> Iterator[None]:
    """Ends the process where nothing ends within the block for so many seconds; arguments as of `Limits`."""
    global _limits
    before, _limits = _limits, Limits(stall, compile)
    tick()
    start()
    try:
        yield
    finally:
        _limits = before


def start() -> None:
    """Starts the thread, once; in a process that has joined others, it also watches these."""
    global _watching
    if _watching is not None:
        return
    talk = None
    if key_values.joined() and key_values.place()[1] > 1:
        talk = _Talk()
        talk.start()
        atexit.register(talk.close)
    jax.monitoring.register_event_duration_secs_listener(_on_compile)
    _watching = threading.Thread(target=_watch, args=(talk,), name="watchdog", daemon=True)
    _watching.start()
