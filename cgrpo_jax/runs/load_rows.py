"""The rows of a `finetune` run: from its configuration to units that fit an update, each with its targets' weights."""

import collections
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets import chat_rows, mixture, rollout_questions, rollout_rows, tables
from cgrpo_jax.datasets.problems import MADE_UP
from cgrpo_jax.datasets.units import Lengths, Unit, fitting
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import LossKind, Stage, TrainRow
from cgrpo_jax.runs import open_run as open_run_lib
from cgrpo_jax.runs import settings
from cgrpo_jax.runs.config import Config
from cgrpo_jax.runs.initial_state import HELD_OUT_ROWS, TRAINING_ROWS
from cgrpo_jax.runs.open_run import OpenRun
from cgrpo_jax.runtime import agreement, console, key_values, local_copies, processes, watchdog
from cgrpo_jax.training import row_losses
from cgrpo_jax.training.packing import PackShape
from cgrpo_jax.training.train_step import num_counted


@dataclasses.dataclass(frozen=True)
class Rows:
    """What a run learns from.

    Attributes:
      training, held_out: what is learnt, and what its loss is measured on; the latter may be empty.
      said: what is to be said of them, a line each.
    """

    training: list[Unit]
    held_out: list[Unit]
    said: list[str]

    def batch(self, *, seed: int, step: int, batch_size: int) -> list[list[TrainRow]]:
        """Returns the rows of each unit of an update, a pure function of (seed, step); pairs are numbered from 1."""
        indices = mixture.batch_indices(seed=seed, step=step, batch_size=batch_size, num_problems=len(self.training))
        return _numbered([self.training[i] for i in indices])

    @property
    def kept(self) -> dict[str, int]:
        """How many units of each question, by its `problem_id`, are learnt, of those that were collected."""
        return dict(collections.Counter(unit.question for unit in self.training if unit.is_collected))

    @property
    def measured(self) -> list[TrainRow]:
        """The held-out rows."""
        return [row for unit in _numbered(self.held_out) for row in unit]


def _numbered(units: Sequence[Unit]) -> list[list[TrainRow]]:
    """Returns the rows of units, their pairs numbered: a batch may hold a unit twice, as the next epoch begins."""
    return [
        [dataclasses.replace(row, pair=row.pair * number) if row.pair else row for row in unit.rows]
        for number, unit in enumerate(units, start=1)
    ]


def open_rows(opened: OpenRun) -> tuple[OpenRun, Rows]:
    """Reads the rows of a run, and returns it with the settings that follow from their number.

    Raises:
      UserError: there are none, one can't be used, or processes have read others.
    """
    config = opened.config
    with processes.agree("reading the rows"):
        console.say("reading and tokenising the rows")
        rows = load_rows(
            config,
            opened.model.prompts,
            shape=opened.settings.learner.shape,
            max_context=opened.model.config.max_context,
            seed=opened.settings.seed,
        )
        for line in rows.said:
            console.say(line)
        decided = settings.of_finetuning(config, opened.settings, num_rows=len(rows.training))
        check_warm_up(config, num_updates=decided.num_iterations, num_rows=len(rows.training))
        open_run_lib.check_training(decided, held_out_rows=bool(rows.held_out))
        read = {TRAINING_ROWS: rows.training, HELD_OUT_ROWS: rows.held_out}
        inputs = {name: _digest(units) for name, units in read.items() if units}
        earlier = {name: _digest(units, with_sizes=False) for name, units in read.items() if units}
    if key_values.place()[1] > 1:
        agreement.check_same("rows", inputs)
    inputs = {**opened.inputs, **inputs}
    return dataclasses.replace(opened, settings=decided, inputs=inputs, earlier_inputs=earlier), rows


def load_rows(config: Config, prompts: Prompts, *, shape: PackShape, max_context: int, seed: int) -> Rows:
    """Returns the rows of a configuration.

    Args:
      config: the configuration.
      prompts: of the model that learns.
      shape: of packed batches.
      max_context: of that model, in tokens.
      seed: with which rows are drawn where a question has too many.

    Raises:
      UserError: there are none, too few for an update, or one can't be used; it is named.
    """
    c, said, named = config.finetune, [], place(config)
    if not named:
        raise UserError(f"no rows to learn from: {why_no_place(config)}.")
    lengths = Lengths(config.max_response_length, shape.pack_length, max_context)
    found = []
    for what, paths in (("training", named), ("held-out", c.eval_rows)):
        read, alone = _with_targets(_read(config, prompts, paths), beta=c.beta) if paths else ([], 0)
        units, skipped = fitting(_seen(read), lengths, on_long=c.on_long)
        alike = 0
        if what == "training":
            units, alike = _kept(units, c.max_per_question, seed=seed, loss=LossKind[c.loss.upper()])
        if paths and not units:
            raise UserError(f"{what} rows: {paths} has none{_why_none(config, skipped)}.")
        if units:
            too_long = f", {skipped} too long and left out" if skipped else ""
            single = f", {alone} left out that are alone, with no other critique of their response" if alone else ""
            same = f", {alike} collected ones left out that are the same as others" if alike else ""
            said.append(f"{what} rows: {_counted(units)}{too_long}{single}{same}")
        found.append(units)
    if len(found[0]) < c.rows_per_update:
        raise UserError(
            f"finetune.rows_per_update {c.rows_per_update} is more than the {len(found[0])} rows that there are; lower "
            "it."
        )
    return Rows(training=found[0], held_out=found[1], said=said)


def place(config: Config) -> str:
    """Returns the files or folders of the rows of a configuration; empty where it names none."""
    return config.finetune.rows or ("" if config.data.kind in MADE_UP else config.data.train)


def why_no_place(config: Config) -> str:
    """Returns what to do where a configuration names no rows."""
    if config.data.kind in MADE_UP:
        return f"data.kind {config.data.kind!r} makes up questions, not rows; set finetune.rows"
    return "set data.train to JSON lines, Parquet, or a folder of rollouts"


def check_warm_up(config: Config, *, num_updates: int, num_rows: int) -> None:
    """Raises a `UserError` where all updates of a run are of its warm-up, whose first one learns nothing."""
    c, warmup = config.finetune, config.optimizer.warmup_updates
    if 0 < num_updates <= warmup:
        length = f"finetune.epochs {c.epochs}" if c.epochs else f"num_iterations {num_updates}, as finetune.epochs is 0"
        raise UserError(
            f"optimizer.warmup_updates {warmup} leaves none of the run's {num_updates} updates to learn at its rate "
            f"({length}; {num_rows} rows, finetune.rows_per_update {c.rows_per_update} of them an update); lower it or "
            "finetune.rows_per_update, or raise finetune.epochs."
        )


def _read(config: Config, prompts: Prompts, paths: str) -> Iterator[Unit]:
    """Yields the units of files or folders of rollouts, or of a user's own rows."""
    loss = LossKind[config.finetune.loss.upper()]
    own = chat_rows.Reader(
        prompts,
        loss,
        turns=config.finetune.turns,
        max_target=config.max_response_length,
        question_key=config.data.question_key,
        solution_key=config.data.solution_key,
    )
    collected = rollout_rows.Reader(
        prompts,
        loss,
        stages=(Stage.CRITIQUE,)
        if loss == LossKind.RCO
        else tuple(Stage[one.upper()] for one in config.finetune.stages),
        which=config.finetune.which,
        context=config.finetune.context,
        pass_threshold=config.pass_threshold,
        sees=config.critic.sees,
    )
    for name in filter(None, map(str.strip, paths.split(","))):
        tables.check_exists(name)
        path = local_copies.local(name)
        files = rollout_rows.files_of(path)
        if files:
            for file in console.progress_bar(files, desc="reading rollouts", unit="file", leave=False):
                yield from (dataclasses.replace(one, is_collected=True) for one in _seen(collected.units(file)))
            if verdicts := sum(rollout_questions.num_verdicts(file)[1] for file in files):
                console.say(f"{name}: {verdicts} rows of verdict problems are left out")
        else:
            yield from _seen(console.progress_bar(own.units(path), desc="reading rows", unit="row", leave=False))


def _seen(units: Iterable[Unit]) -> Iterator[Unit]:
    """Yields units; the watchdog sees each."""
    for unit in units:
        watchdog.alive()
        yield unit


def _with_targets(units: Iterable[Unit], *, beta: float) -> tuple[list[Unit], int]:
    """Returns units, those of RCO with their targets, and how many of these have nothing to be compared with."""
    groups: dict[str, list[Unit]] = collections.defaultdict(list)
    found = []
    for unit in units:
        if unit.utility is None:
            found.append(unit)
        else:
            groups[unit.group].append(unit)
    several = [group for group in groups.values() if len(group) > 1]
    utilities = [[unit.utility or 0.0 for unit in group] for group in several]
    for group, targets in zip(several, row_losses.rco_targets(utilities, beta=beta), strict=True):
        for unit, target in zip(group, targets, strict=True):
            rows = tuple(dataclasses.replace(row, advantage=float(target)) for row in unit.rows)
            found.append(dataclasses.replace(unit, rows=rows))
    return found, len(groups) - len(several)


def _kept(units: Sequence[Unit], most: int, *, seed: int, loss: LossKind) -> tuple[list[Unit], int]:
    """Returns the units that are learnt, in their order, and how many collected ones were left out as repeats.

    At most so many of a question, 0 for all; where some are collected, the limit is theirs, and one's own all stay.
    Repeats of what is collected are left out without a limit too, but not of RCO and DPO, where each counts by itself.
    """
    collected = [unit for unit in units if unit.is_collected]
    if not collected:
        return (_drawn(units, most, seed=seed) if most else list(units)), 0
    if not most and loss != LossKind.NLL:
        return list(units), 0
    drawn = _drawn(collected, most or len(collected), seed=seed)
    kept = {id(unit) for unit in drawn}
    alike = 0 if most else len(collected) - len(drawn)
    return [unit for unit in units if not unit.is_collected or id(unit) in kept], alike


def _drawn(units: Sequence[Unit], most: int, *, seed: int) -> list[Unit]:
    """Returns at most so many units of each question, no two of which are the same, in their order."""
    seen: dict[str, set[bytes]] = collections.defaultdict(set)
    kept = []
    for number in np.random.default_rng(seed).permutation(len(units)):
        unit = units[number]
        taught = repr([(row.context_ids.tolist(), row.target_ids.tolist()) for row in unit.rows])
        taught = hashlib.sha256(taught.encode()).digest()  # of which a host has room for many
        if taught not in seen[unit.question] and len(seen[unit.question]) < most:
            seen[unit.question].add(taught)
            kept.append(int(number))
    return [units[number] for number in sorted(kept)]


def _counted(units: Sequence[Unit]) -> str:
    """Returns how many units there are, and how many tokens they have."""
    rows = [row for unit in units for row in unit.rows]
    targets = sum(map(num_counted, rows))
    whole = sum(len(row.context_ids) + len(row.target_ids) for row in rows)
    return f"{len(units)}, {whole} tokens, {targets} of them learnt"


def _why_none(config: Config, skipped: int) -> str:
    c = config.finetune
    if skipped:
        return f", {skipped} too long aside; raise max_response_length and packing.length"
    if c.loss == "rco":
        return " with two critiques of one response whose refinements are graded"
    if c.loss == "dpo":
        return " of which one is better than another after the same prompt"
    return f" that finetune.stages {tuple(c.stages)} and finetune.which {c.which!r} ask for, of rollouts"


def _digest(units: Sequence[Unit], *, with_sizes: bool = True) -> str:
    """Returns 16 hexadecimal digits of units in their order: all that an update reads of them.

    Earlier versions hashed their rows alone, `with_sizes=False`.
    """
    whole = hashlib.sha256()
    for unit in _seen(units):
        if with_sizes and len(unit.rows) > 1:  # two rows of one unit are not two units: an update draws units
            whole.update(f"{len(unit.rows)} rows".encode())
        for row in unit.rows:
            counted = None if row.counted is None else row.counted.tobytes()
            read = (row.loss.name, row.pair, row.advantage, row.context_ids.tolist(), row.target_ids.tolist(), counted)
            whole.update(repr(read).encode())
    return whole.hexdigest()[:16]
