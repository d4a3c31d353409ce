"""Results that grow on disk, part by part: what an evaluation or a diagnosis writes, and how it resumes when killed.

A part is some questions that are answered together by an engine that holds nothing else. Its lines are written as its
questions end, in their order. A run that was killed does the part again that it was in, and only that: so each text is
sampled beside the same others as in a run that was not killed, and comes out the same to the last bit, near ties
included (sampling.py).
"""

import contextlib
import dataclasses
import itertools
import json
import logging
import pathlib
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.generators import Generator, RemoteGenerator, running_engines
from cgrpo_jax.inference.orchestrator import Orchestrator, Status
from cgrpo_jax.records import Problem
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.run_dir import RunDir
from cgrpo_jax.runtime import files, places, processes

# Of the lines: results of another format, or from before there was one, do not resume.
FORMAT = 3
_log = logging.getLogger(__name__)


class Results:
    """A folder of results; of several processes, only the first may touch it.

    Args:
      path: the folder. It holds `about.json` (what the results are of), `NAME.jsonl` (one line a question) and
        `summary.json`.
      may_change: dotted keys of the configuration, or groups of them, that may change when the results resume.

    Attributes:
      whole: of each file, or kind of files, that has been worked at, how many questions are in parts that stay, and of
        how many.
    """

    def __init__(self, path: str | pathlib.Path, *, may_change: Sequence[str] = ()):
        self.path = places.place(path)
        self._folder = RunDir(self.path)
        self.may_change = may_change
        self.about = self.path / "about.json"
        self.whole: dict[str, tuple[int, int]] = {}

    def started(self) -> str | None:
        """Returns when the results were begun, as `open` was given it; None for those that are not there yet."""
        return self._read_about()["started"] if self.about.exists() else None

    @contextlib.contextmanager
    def open(self, about: Mapping[str, Any]) -> Iterator[None]:
        """Makes the folder, or checks that its results are of the same, and keeps others out within the block.

        Args:
          about: `started`, `config` (from `config.to_json`), and whatever else the results depend on, by name.

        Raises:
          UserError: the folder holds results of something else, or can't be written, or is being written.
        """
        about = {"format": FORMAT, **about}
        with self._folder.locked():
            if self.about.exists():
                self._check_same(self._read_about(), about)
            elif strays := sorted(path.name for end in ("jsonl", "parquet") for path in self.path.glob(f"*.{end}")):
                more = f" and {len(strays) - 3} more" if len(strays) > 3 else ""
                raise UserError(f"{self.path} has {', '.join(strays[:3])}{more} but no about.json; give another --out.")
            else:
                self.write("about.json", json.dumps(about, indent=2) + "\n")
            yield

    def _check_same(self, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
        changed = config_lib.differences(old["config"], new["config"], self.may_change)
        others = [key for key in new if key != "config" and old.get(key) != new[key]]
        changed += [f"{key}: {old.get(key)} -> {new[key]}" for key in others]
        if changed:
            raise UserError(
                f"{self.path} holds results of something else ({'; '.join(changed)}), which are not mixed; give "
                "another --out, or remove the folder."
            )

    def _read_about(self) -> dict[str, Any]:
        try:
            about = json.loads(self.about.read_text(encoding="utf-8"))
            if isinstance(about, dict) and isinstance(about["config"], dict) and isinstance(about["started"], str):
                return about
            raise ValueError("it is no description of results")
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"{self.about} can't be read ({error}); give another --out, or remove the folder."
            ) from error

    def check_owned(self) -> None:
        """Checks that the folder, once open, is still this program's.

        Raises:
          UserError: another one has begun to write it.
        """
        self._folder.check_owned()

    def write(self, name: str, text: str) -> None:
        """Writes a file, whole or not at all."""
        self._folder.check_owned()
        files.write_atomically(self.path / name, text)

    def append(self, name: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Appends lines to `NAME.jsonl`."""
        self._folder.check_owned()
        files.append(self.path / f"{name}.jsonl", "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))

    def lines(self, name: str, first: int = 0, last: int | None = None) -> Iterator[dict[str, Any]]:
        """Yields the lines of `NAME.jsonl`, if there is one, from number `first` to before number `last`.

        Raises:
          UserError: one is damaged.
        """
        path = self.path / f"{name}.jsonl"
        if not path.exists():
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(itertools.islice(file, first, last), start=first + 1):
                yield _read_line(path, number, line)

    def resume(self, name: str, *, size: int, numbers: Sequence[int]) -> int:
        """Cuts `NAME.jsonl` back to the whole parts that stay, and returns how many lines these are.

        The first part that does not stay has a line whose texts are not all graded, or which is of another question
        than is now in its place: a diagnosis criticises other questions once more responses are graded. Where a
        file has all its lines, ungraded texts are graded again whenever it is opened. Before that they are only once,
        and `NAME.again` holds how many lines had that chance: else what can never be graded would keep an evaluation
        that is killed time and again from its end.

        Args:
          name: of the file.
          size: lines of a part.
          numbers: of the questions, in their order.

        Raises:
          UserError: a line is damaged.
        """
        path, again = self.path / f"{name}.jsonl", self.path / f"{name}.again"
        if not path.exists():
            return 0
        ends, lines = [0], []
        with path.open("rb") as file:
            for text in file:
                if text.endswith(b"\n"):  # else it was cut short
                    ends.append(ends[-1] + len(text))
                    line = _read_line(path, len(ends) - 1, text)
                    lines.append((line["number"], line["ungraded"]))
        number, total = len(lines), len(numbers)
        tried = int(again.read_text()) if number < total and again.exists() else 0
        others = (i for i, (of, _) in enumerate(lines) if i >= total or of != numbers[i])
        ungraded = next((i for i, (_, count) in enumerate(lines) if count and i >= tried), number)
        stop = min(next(others, number), ungraded)
        kept = number if stop == number == total else stop - stop % size
        files.truncate(path, ends[kept])
        if ungraded < number:
            self.write(again.name, f"{number}\n")
            texts = sum(count for _, count in lines[kept:])
            _log.warning("%s: %d texts have no verdict; resuming from line %d, to grade them.", path, texts, kept + 1)
        return kept


def _read_line(path: pathlib.Path, number: int, text: str | bytes) -> dict[str, Any]:
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"{path}, line {number} is not JSON ({error}); remove it and all after it.") from error


def part_size(*, total_slots: int, texts_per_slot: int, texts: int) -> int:
    """Returns how many questions of `texts` texts each make a part that gives each slot about so many of them.

    At a part's end slots wait for the last texts, so it should have several for each; and not too many, for a part that
    is interrupted is done again.
    """
    return max(1, -(-texts_per_slot * total_slots // texts))


def run_parts(
    results: Results,
    name: str,
    numbered: Sequence[tuple[int, Problem]],
    solve: Callable[[int, Problem, dict], Coroutine[Any, Any, dict]],
    *,
    known: Callable[[int, int], Sequence[dict]],
    generators: Sequence[Generator | RemoteGenerator | None],
    texts: int,
    texts_per_slot: int,
    orchestrator: Orchestrator,
    on_tick: Callable[[Status], None] | None = None,
) -> None:
    """Writes a line for each of some questions to `NAME.jsonl`, beginning after those that are there.

    Args:
      results: the open folder.
      name: of the file.
      numbered: the questions, each with its number, which enters its random keys.
      solve: `(number, problem, what is known of it) -> its line`, a coroutine.
      known: `(first, last)` -> what is known of the questions in these places of `numbered`; called on process 0.
      generators: that `solve` writes with.
      texts: that it writes for one question, about.
      texts_per_slot: that a part has, as for `part_size`.
      orchestrator: runs the coroutines.
      on_tick: as in `Orchestrator.run`, with the progress of all parts.
    """
    slots = max([generator.engine.total_slots for generator in generators if isinstance(generator, Generator)])
    size = part_size(total_slots=slots, texts_per_slot=texts_per_slot, texts=texts)
    total = len(numbered)
    numbers = [number for number, _ in numbered]
    done = processes.decide(lambda: results.resume(name, size=size, numbers=numbers), f"reading {results.path}")
    results.whole[f"{name}.jsonl"] = done, total
    for first in range(done, total, size):
        part = numbered[first : first + size]
        before = processes.decide(lambda first=first: list(known(first, first + size)), f"reading {results.path}")
        write = _InOrder(results, name)

        async def line(place, number, problem, what, write=write):
            write(place, await solve(number, problem, what))

        with running_engines(*generators) as engines:
            orchestrator.run(
                [line(i, *one, what) for i, (one, what) in enumerate(zip(part, before, strict=True))],
                engines=engines,
                on_tick=on_tick
                and (lambda at, first=first: on_tick(dataclasses.replace(at, done=first + at.done, total=total))),
            )
        results.whole[f"{name}.jsonl"] = min(first + size, total), total


class _InOrder:
    """Appends lines in the order of their places, each as soon as all before it are there."""

    def __init__(self, results: Results, name: str):
        self._results, self._name = results, name
        self._next, self._waiting = 0, {}

    def __call__(self, place: int, line: dict) -> None:
        self._waiting[place] = line
        ready = []
        while self._next in self._waiting:
            ready.append(self._waiting.pop(self._next))
            self._next += 1
        if ready:
            with processes.agree(f"writing {self._results.path}"):
                if processes.is_first():
                    self._results.append(self._name, ready)
