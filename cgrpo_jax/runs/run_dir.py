"""The folder of a run: `config.json`, `metrics.jsonl`, `rollouts/`, `summary.json`, `checkpoints/`, `model/`.

Whole files are replaced atomically; the log grows by whole lines and is cut back when a run resumes. It lies on a disk
or in a bucket; what one of them has not is in `runtime.files` and `runtime.folder_lock`.
"""

import contextlib
import dataclasses
import datetime
import json
import math
import pathlib
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import TrainRow
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import old_keys, validate
from cgrpo_jax.runtime import files, folder_lock, places


class RunDir:
    """One run's folder. Nothing is written before `open`; of several processes, only the first may write.

    Args:
      path: the folder.
      started: when the run started, where the caller knows it.

    Example:
      run = RunDir("runs/a")
      resumed = run.open(config.to_json(config))
      run.append_metrics({"step": 1, "reward": 0.25})
    """

    def __init__(self, path: str | pathlib.Path, *, started: datetime.datetime | None = None):
        self.path = places.place(path)
        self._check_owned = lambda: None  # by this program; while it is locked
        self._started = started
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.rollouts = self.path / "rollouts"
        self.kept_rows = self.path / "kept_rows.json"  # of `finetune`: rows of each question that were collected
        self.summary = self.path / "summary.json"
        self.date = self.path / "date"  # the start, as ISO 8601: what prompts that print the date print, later too
        self.starts = self.path / "starts.jsonl"  # command, code and devices of each start
        self.nonfinite_rows = self.path / "nonfinite_rows.jsonl"  # of the update that a run gave up at
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model"  # config.json and tokenizer of the model, as Hugging Face has them
        self.critic_model = self.path / "critic_model"  # likewise, of a critic of another model that is trained
        self.reference = self.path / "reference"  # weights that the KL term compares with
        self.warm_start = self.path / "warm_start"  # what the lessons have taught so far, until the first checkpoint
        self.base = self.path / "base"  # weights that adapters belong to, where no other folder has them

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder, and keeps other runs out of it within the block, or until the process dies.

        Raises:
          UserError: another run is in it, or it can't be made.
        """
        busy = (
            f"another run is writing {self.path}; wait for it to end, or give another --workdir (processes that "
            "work together are started with --distributed)."
        )
        with contextlib.ExitStack() as held:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self._check_owned = held.enter_context(folder_lock.owned(self.path, busy=busy))
            except OSError as error:
                raise self._not_writable(error) from error
            yield

    def check_owned(self) -> None:
        """Checks that the folder, once locked, is still this program's: a bucket has no locks.

        Raises:
          UserError: another run has begun to write it.
        """
        self._check_owned()

    def _not_writable(self, error: OSError) -> UserError:
        return UserError(f"--workdir {self.path} can't be written ({error}); give another --workdir")

    def open(
        self,
        config_json: Mapping[str, Any],
        *,
        ignore: Sequence[str] = ("num_iterations",),
        why_not: Mapping[str, str] = types.MappingProxyType({}),
    ) -> bool:
        """Creates the folder with `config.json`, or checks that the folder is of a run with the same config.

        Args:
          config_json: the configuration as `config.to_json` returns it.
          ignore: dotted keys that a resumed run may change; `config.json` then takes their new values.
          why_not: of these, keys that this run may not change after all, and why.

        Returns:
          True if the folder held a run already.

        Raises:
          UserError: the folder is of another config or of something else, or can't be written. Keys that training
            reads with neither config are no difference.
        """
        resumed = self.config.exists()
        if resumed:
            self._check_checkpoints()
            old = self._read_config()
            free = {*ignore, *validate.never_read(old, config_json)} - why_not.keys()
            changed = config_lib.differences(old, config_json, sorted(free))
            reasons = {one: why_not.get(one.partition(":")[0]) for one in changed}
            changed = [f"{one}, but {why}" if why else one for one, why in reasons.items()]
            # A run that was stopped before its first checkpoint has nothing that another config could spoil.
            if changed and any(path.name.isdigit() for path in self.checkpoints.glob("*")):
                raise UserError(
                    f"{self.path} holds a run with another config ({'; '.join(changed)}); give another --workdir, "
                    "or the config the run was started with"
                )
            if not config_lib.differences(old, config_json):
                return True
            config_json = old_keys.as_old_as(old, config_json)
        else:
            of_a_run = (self.metrics, self.rollouts, self.summary, self.checkpoints)
            strays = [path.name for path in of_a_run if path.exists()]
            if strays:
                raise UserError(f"{self.path} has {', '.join(strays)} but no config.json; give another --workdir")
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.date.exists():
                files.write_atomically(self.date, self.started().isoformat() + "\n")
            files.write_atomically(self.config, json.dumps(config_json, indent=2) + "\n")
        except OSError as error:
            raise self._not_writable(error) from error
        return resumed

    def _check_checkpoints(self) -> None:
        """Refuses to begin anew where the work of a run is: its checkpoints were made before its first row."""
        if self.checkpoints.is_dir() or not self.metrics.exists():
            return
        if rows := self.metrics.read_bytes().count(b"\n"):
            raise UserError(
                f"{self.path} has metrics of {rows} iterations but no folder {self.checkpoints.name}; restore it from "
                f"a copy, or give another --workdir (an empty folder of that name: start again, with the logs kept)."
            )

    def started(self) -> datetime.datetime:
        """Returns when the run started, in local time; now, for one that has not.

        Raises:
          UserError: the file with the date is damaged.
        """
        if self._started is None:
            try:
                self._started = datetime.datetime.fromisoformat(self.date.read_text(encoding="utf-8").strip())
            except (FileNotFoundError, NotADirectoryError):  # the latter: `open` says that it can't be written
                self._started = datetime.datetime.now().replace(microsecond=0)
            except (OSError, ValueError) as error:
                raise UserError(f"{self.date} can't be read ({error}); write the run's start in it.") from error
        return self._started

    def append_metrics(self, metrics: Mapping[str, Any]) -> None:
        """Appends one line to `metrics.jsonl`: numbers by name, `step` among them; nan and infinities become null.

        Raises:
          UserError: another run has begun to write the folder.
        """
        self.check_owned()
        _append(self.metrics, [metrics])

    def append_start(self, start: Mapping[str, str]) -> None:
        """Appends one line to `starts.jsonl`.

        Raises:
          UserError: another run has begun to write the folder, or it can't be written.
        """
        self.check_owned()
        with files.checked(self.starts):
            files.append(self.starts, json.dumps(dict(start)) + "\n")

    def drop_after(self, step: int, *, expected: int = 0) -> list[str]:
        """Drops what was written of steps after `step`, lines of `metrics.jsonl` and rollouts, and what was cut short.

        Where that is more than a killed run loses, checkpoints are damaged or gone: the rollouts are moved aside then,
        and a copy of the metrics stays, as `rollouts.before-DATE` and `metrics.jsonl.before-DATE`.

        Args:
          step: the last one before the checkpoint that the run resumes from; -1 drops everything.
          expected: steps that may be dropped without a copy.

        Returns:
          The names of what stays aside.

        Raises:
          UserError: a line other than the last is damaged; nothing is dropped then.
        """
        text = self.metrics.read_text(encoding="utf-8", errors="replace") if self.metrics.exists() else ""
        records = list(_records(self.metrics, text))
        kept = "".join(line for line, record in records if record["step"] <= step)
        later = [path for path in self.rollouts.glob(rollouts.NAMES) if rollouts.iteration_of(path) > step]
        dropped = {record["step"] for _, record in records if record["step"] > step}
        dropped |= {rollouts.iteration_of(path) for path in later}
        aside = []
        if len(dropped) > expected:
            aside = self._set_aside(later, copy_metrics=kept != text)
        for path in [*self.rollouts.glob(f".{rollouts.NAMES}.tmp"), *([] if aside else later)]:
            path.unlink()
        if kept != text:
            files.write_atomically(self.metrics, kept)
        return aside

    def _set_aside(self, later: Sequence[pathlib.Path], *, copy_metrics: bool) -> list[str]:
        now = datetime.datetime.now().isoformat(timespec="microseconds").replace(":", "-")
        aside = []
        if copy_metrics:
            copy = self.path / f"{self.metrics.name}.before-{now}"
            files.copy(self.metrics, copy)
            aside.append(copy.name)
        if later:
            folder = self.path / f"{self.rollouts.name}.before-{now}"
            folder.mkdir()
            for path in later:
                path.rename(folder / path.name)
            aside.append(folder.name)
        return aside

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Writes `summary.json`, whole or not at all."""
        self.check_owned()
        files.write_atomically(self.summary, json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n")

    def write_kept_rows(self, kept: Mapping[str, int]) -> None:
        """Writes how many rows of each question are learnt, by its `problem_id`; whole or not at all."""
        self.check_owned()
        with files.checked(self.kept_rows):
            files.write_atomically(self.kept_rows, json.dumps(dict(kept), indent=1) + "\n")

    def write_nonfinite_rows(self, rows: Sequence[TrainRow]) -> None:
        """Writes rows whose gradient was not finite to `nonfinite_rows.jsonl`, one a line, whole or not at all.

        Numbers that are not finite, for which JSON has none, are the strings "inf", "-inf" and "nan". What a teacher
        said of each token is left out.
        """
        lines = []
        for row in rows:
            fields = dataclasses.asdict(row) | {"loss": row.loss.name.lower()}
            for name in ("top_ids", "teacher_logp"):
                del fields[name]
            lines.append(json.dumps(_spelt_out(fields), allow_nan=False) + "\n")
        files.write_atomically(self.nonfinite_rows, "".join(lines))

    def _read_config(self) -> dict[str, Any]:
        try:
            return json.loads(self.config.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{self.config} can't be read ({error}); give another --workdir") from error


def _records(path: pathlib.Path, text: str) -> Iterable[tuple[str, dict[str, Any]]]:
    """Yields each whole line with what it holds."""
    # Not splitlines(): model text may hold other line separators, which JSON leaves as they are.
    lines = text.split("\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number} is not JSON ({error}); fix or remove that line") from error
        if not isinstance(record, dict) or not isinstance(record.get("step"), int):
            raise UserError(f"{path}, line {number} has no step; fix or remove that line")
        yield line + "\n", record


def _append(path: pathlib.Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = []
    for record in records:
        plain = _plain(record)
        if not isinstance(plain.get("step"), int):
            raise ValueError(f"a line of {path.name} needs an integer step, got {record.get('step')!r}")
        lines.append(json.dumps(plain, allow_nan=False) + "\n")
    files.append(path, "".join(lines))


def _spelt_out(value: Any) -> Any:
    """Returns the value as JSON has it, with names for the numbers that it has not."""
    if isinstance(value, Mapping):
        return {key: _spelt_out(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | list):
        return [_spelt_out(inner) for inner in (value.tolist() if isinstance(value, np.ndarray) else value)]
    if isinstance(value, np.generic):
        value = value.item()
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plain(value: Any) -> Any:
    """Returns the value as JSON has it: arrays as numbers and lists, nan and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "dtype"):  # a NumPy or JAX array or scalar
        return _plain(np.asarray(value).tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
