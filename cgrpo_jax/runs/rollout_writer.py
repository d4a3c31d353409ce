"""Writes the rollouts of iterations to the run's folder, each while the next one is computed."""

import functools
import pathlib
from collections.abc import Callable, Sequence
from concurrent import futures

import numpy as np

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.runs.iteration import Iteration
from cgrpo_jax.runs.stages import Stages
from cgrpo_jax.runtime import files

# Of a file, by the table of the room `datasets`: ids and log-probabilities of what was sampled, its text included; its
# prompt, which most often repeats another; log-probabilities of the trainer.
_TOKEN, _PROMPT_TOKEN, _TRAINER = 6.0, 1.5, 3.0
_FILE = 16_000  # what a file says of its columns


class RolloutWriter:
    """Writes one file at a time, on a thread of its own, and is waited for by what comes too soon.

    Used as a context, it ends when what it has begun is written.

    Args:
      folder: `rollouts` of the run's folder.
      every: iterations between files; 0 writes none.
      grader: who rewards the problems that name no grader of their own.
      reward_source: what rewards a row, the `verifier` or the verdict of its `critic`.
      spell: token ids to text, control tokens included.

    Attributes:
      bytes: of the newest file before the one that was put last; None without one.
    """

    def __init__(
        self, folder: pathlib.Path, *, every: int, grader: str, reward_source: str, spell: Callable[[np.ndarray], str]
    ):
        self.folder, self.every = folder, every
        self._grader, self._reward_source, self._spell = grader, reward_source, spell
        self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollouts")
        self._pending: futures.Future[int] | None = None
        self.bytes: int | None = None

    def __enter__(self) -> "RolloutWriter":
        return self

    def __exit__(self, *_) -> None:
        self._thread.shutdown()

    @property
    def metrics(self) -> dict[str, float]:
        """What an iteration's metrics say of it."""
        return {} if self.bytes is None else {"rollouts/bytes": self.bytes}

    def put(self, done: Iteration) -> None:
        """Begins to write an iteration, if that is due, once what came before is written.

        Raises:
          UserError: that could not be written.
        """
        self.wait()
        if self.bytes is None and (before := sorted(self.folder.glob(rollouts.NAMES))):  # of the run that is resumed
            self.bytes = before[-1].stat().st_size
        if self.every and done.number % self.every == 0:
            rows = functools.partial(done.all_rows, grader=self._grader, reward_source=self._reward_source)
            self._pending = self._thread.submit(self._write, done.number, rows)

    def put_rows(self, number: int, rows: Sequence[rollouts.Row]) -> None:
        """Begins to write rows as the file of a number, once what came before is written.

        Raises:
          UserError: that could not be written.
        """
        self.wait()
        self._pending = self._thread.submit(self._write, number, lambda: rows)

    def wait(self) -> None:
        """Waits until all that was put is on disk.

        Raises:
          UserError: it could not be written.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        with files.checked(self.folder):
            self.bytes = pending.result()

    def _write(self, number: int, rows: Callable[[], Sequence[rollouts.Row]]) -> int:
        self.folder.mkdir(exist_ok=True)
        path = self.folder / rollouts.file_name(number)
        return rollouts.write(path, rows(), iteration=number, spell=self._spell)


def most_bytes(stages: Stages, *, rescore: bool) -> int:
    """Returns about how many bytes a file has where every text has its greatest length, and none is written twice.

    Args:
      stages: what an iteration generates.
      rescore: whether the trainer's log-probabilities are computed.
    """
    prompts = sum(one.num_prompts * one.max_prompt_length for one in stages.all)
    sampled = sum(one.num_tokens for one in stages.all)
    return int(_FILE + prompts * _PROMPT_TOKEN + sampled * (_TOKEN + _TRAINER * rescore))
