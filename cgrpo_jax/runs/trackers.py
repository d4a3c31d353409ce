"""A run's metrics where people already look: TensorBoard, Weights & Biases, trackio. `metrics.jsonl` stays the source.

Names are those of `metrics.jsonl`, which are TRL's where it has them. A tracker that fails ends no run: it is said
once, and the run goes on without it. A resumed run goes on in the same tracker's run, each step once.
"""

import contextlib
import functools
import importlib
import importlib.util
import json
import math
import os
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Author, Rollout
from cgrpo_jax.rollout import reward_of
from cgrpo_jax.runs.iteration import Iteration
from cgrpo_jax.runtime import console, event_files, files, places
from cgrpo_jax.runtime import text as text_lib

PACKAGES = {"wandb": "wandb", "trackio": "trackio"}  # TensorBoard's files need none
_MOST_CHARACTERS = 4000  # of a text of the sample


class Tracker(Protocol):
    """Where metrics go."""

    def log(self, step: int, row: Mapping[str, float], histograms: Mapping[str, np.ndarray], sample: str) -> None:
        """Takes an iteration: its finite metrics, distributions, and a group of texts (empty where there is none)."""

    def close(self) -> None:
        """Writes what still waits."""


class Trackers:
    """All trackers of a run, none of which can end it: one that fails is told nothing more.

    Used as a context, it closes them.

    Args:
      trackers: by their names; process 0 alone has any.

    Attributes:
      faults: how often each failed: once, or not.

    Example:
      >>> with Trackers({"tensorboard": TensorBoard(folder, config={})}) as trackers:
      ...     trackers.log(done, {"step": 0, "reward": 0.5})
    """

    def __init__(self, trackers: Mapping[str, Tracker]):
        self._trackers = trackers
        self.faults = dict.fromkeys(trackers, 0)

    def __enter__(self) -> "Trackers":
        return self

    def __exit__(self, *_) -> None:
        for name, tracker in self._trackers.items():
            self._try(name, tracker.close)

    def log(self, done: Iteration, row: Mapping[str, Any]) -> None:
        """Hands an iteration and its row of metrics to all trackers."""
        numbers = {name: float(value) for name, value in row.items() if name != "step" and _is_finite(value)}
        shown = functools.cache(lambda: (histograms(done), sample(done)))
        for name, tracker in self._trackers.items():
            # What is shown is found within the call: a fault there is a tracker's too.
            self._try(name, lambda log=tracker.log: log(done.number, numbers, *shown()))

    def _try(self, name: str, function: Callable[[], None]) -> None:
        if self.faults[name]:
            return
        try:
            function()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the run is worth more than what is shown of it
            self.faults[name] += 1
            what = text_lib.one_line(f"{type(error).__name__}: {error}")[:200]
            console.say(f"tracker {name} failed ({what}); the run goes on without it, and metrics.jsonl has all of it")


def make(
    names: Sequence[str], folder: pathlib.Path, *, config: Mapping[str, Any], project: str, group: str
) -> dict[str, Tracker]:
    """Returns the trackers of a run. Nothing is written before the first iteration.

    Args:
      names: of them, of `PACKAGES`.
      folder: of the run.
      config: its configuration, by dotted keys.
      project, group: under which it is found, where a tracker has such.

    Raises:
      UserError: the package of one is not installed.
    """
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(f"trackers {name!r} needs the package {PACKAGES[name]}; pip install it, or leave it out.")
    made: dict[str, Tracker] = {}
    for name in names:
        if name == "tensorboard":
            made[name] = TensorBoard(folder / "tensorboard", config=config)
        else:
            made[name] = HostedRun(name, folder, config=config, project=project, group=group)
    return made


class TensorBoard:
    """Event files, which `tensorboard --logdir=RUN` reads.

    Of a resumed run the first event says from which step on earlier events no longer count.

    Args:
      folder: of the event files.
      config: the run's configuration, shown as a text.
    """

    def __init__(self, folder: pathlib.Path, *, config: Mapping[str, Any]):
        self._folder, self._config = folder, config
        self._file: event_files.EventFile | None = None

    def log(self, step: int, row: Mapping[str, float], histograms: Mapping[str, np.ndarray], sample: str) -> None:
        values = [event_files.scalar(name, value) for name, value in row.items()]
        values += [event_files.histogram(name, array) for name, array in histograms.items()]
        if sample:
            values.append(event_files.text("sample", _as_code(sample)))
        if self._file is None:
            self._file = event_files.EventFile(self._folder)
            values.append(event_files.text("configuration", _as_code(json.dumps(dict(self._config), indent=2))))
        self._file.write(step, values)  # a run that is killed has shown what it did

    def close(self) -> None:
        """Does nothing: nothing waits."""


class HostedRun:
    """Weights & Biases, or trackio, which has the same functions. Keys and modes (offline) are their environments'.

    Neither is let ask for a key: without one, `wandb` fails.

    The run's name there is kept in `RUN/NAME_run`, so that a resumed run goes on in it. Steps that it has already are
    not taken again.

    Args:
      name: `wandb` or `trackio`.
      folder: of the run.
      config: its configuration.
      project, group: under which it is found; an empty group is none.
    """

    def __init__(self, name: str, folder: pathlib.Path, *, config: Mapping[str, Any], project: str, group: str):
        self._name, self._folder, self._config = name, folder, config
        self._project, self._group = project, group
        self._module: types.ModuleType | None = None
        self._last = folder / f"{name}_run"  # name of the run, and its last step

    def log(self, step: int, row: Mapping[str, float], histograms: Mapping[str, np.ndarray], sample: str) -> None:
        name, last = self._known()
        if self._module is None:
            self._keep(name, last)  # before it begins: what fails then has the same name when it is tried again
            self._module = self._started(name)
        if step <= last:
            return
        values: dict[str, Any] = dict(row)
        if self._name == "wandb":  # trackio takes numbers alone
            values |= {key: self._module.Histogram(array) for key, array in histograms.items()}
            if sample:
                values["sample"] = self._module.Html(f"<pre>{_escaped(sample)}</pre>")
        self._module.log(values, step=step)
        self._keep(name, step)

    def close(self) -> None:
        if self._module is not None:
            self._module.finish()

    def _known(self) -> tuple[str, int]:
        """Returns the name of the run there and the last step that it has."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # unreadable is as absent
            found = json.loads(self._last.read_text(encoding="utf-8"))
            return str(found["name"]), int(found["step"])
        path = self._folder if places.is_bucket(self._folder) else self._folder.resolve()
        return f"{path.name}-{np.random.default_rng().integers(2**32):08x}", -1

    def _keep(self, name: str, step: int) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        files.write_atomically(self._last, json.dumps({"name": name, "step": step}) + "\n")

    def _started(self, name: str) -> types.ModuleType:
        module = importlib.import_module(self._name)
        kw: dict[str, Any] = {"project": self._project, "name": name, "config": dict(self._config), "resume": "allow"}
        if self._group:
            kw["group"] = self._group
        if self._name == "wandb":
            bucket = places.is_bucket(self._folder)  # wandb's own files can't lie there
            kw |= {"id": name, "dir": tempfile.mkdtemp(prefix="cgrpo_wandb_") if bucket else str(self._folder)}
        with _nobody_to_ask():
            module.init(**kw)
        return module


@contextlib.contextmanager
def _nobody_to_ask() -> Iterator[None]:
    """Within the block standard input is no terminal, and at its end: who asks there for a key would wait for ever."""
    before = sys.stdin
    with open(os.devnull, encoding="utf-8") as nobody:
        sys.stdin = nobody
        try:
            yield
        finally:
            sys.stdin = before


# --- what is shown of an iteration ------------------------------------------------------------------------------------


def histograms(done: Iteration) -> dict[str, np.ndarray]:
    """Returns the lengths of an iteration's texts, and where the trainer scored them its ratios to the sampler."""
    found = {
        "lengths/responses": np.array([len(row.token_ids) for group in done.responses for row in group]),
        "lengths/refinements": np.array([len(row.token_ids) for row in done.refinements]),
    }
    if done.updates.trainer_logps:
        for name, refined in (("ratios/responses", False), ("ratios/refinements", True)):
            groups = zip(done.groups, done.rows, done.updates.trainer_logps, strict=True)
            moved = [
                np.exp(logp - row.old_logp)
                for group, rows, logps in groups
                for text, row, logp in zip(group.rows, rows, logps, strict=True)
                if row.refined == refined and text.author == Author.POLICY  # others have no ratio to the policy
            ]
            found[name] = np.concatenate(moved) if moved else np.zeros(0)
    return {name: values[np.isfinite(values)] for name, values in found.items() if values.size}


def sample(done: Iteration) -> str:
    """Returns the texts of the kept refinement with the highest reward, from its question on; empty without one."""
    best = max(done.kept, key=reward_of, default=None)
    if best is None:
        return ""
    chain: list[Rollout] = [best]
    while (parent := chain[0].parent) is not None:
        chain.insert(0, parent)
    problem = done.problems[best.index.question]
    parts = [f"question: {problem.question}", f"gold answer: {problem.answer}"]
    parts += [f"{row.stage.name.lower()}{_reward(row)}:\n{row.whole_text[:_MOST_CHARACTERS]}" for row in chain]
    return text_lib.shown("\n\n".join(parts))


def _reward(row: Rollout) -> str:
    return "" if row.reward is None else f" (reward {row.reward:g})"


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and math.isfinite(value)


def _as_code(text: str) -> str:
    """Returns a text as a block of Markdown's code, in which nothing has a meaning."""
    return "\n".join(f"    {line}" for line in text.split("\n"))


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")
