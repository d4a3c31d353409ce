"""Every text of an iteration and what became of it, as one Parquet file; written whole, and read back bit for bit.

`rollout_columns.COLUMNS` says what a file holds. It has plain types alone, so that pandas, DuckDB and others read it as
it is.
"""

import collections
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from cgrpo_jax.datasets.rollout_columns import COLUMNS, IDS, LOGP, READABLE, SCHEMA, VERSION_KEY
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import Author, LossKind, Problem, Rollout, RowIndex, Stage, TrainRow, problem_id
from cgrpo_jax.runtime import files, local_copies
from cgrpo_jax.runtime import text as text_lib

NAMES = "step_*.parquet"  # of the files, which sort
PROBLEM_COLUMNS = ("problem_index", "source", "problem_grader", "turns", "question", "answer", "solution")
PROBLEM_COLUMNS += ("problem_columns",)
_UNSAMPLED = (Author.SOLUTION, Author.REFINER)  # whose tokens no model sampled as they are
_LISTS = ("prompt_ids", "token_ids", "feedback_ids", "logp", "trainer_logp")
# Numbers as they are, which zstd compresses better than a dictionary's; of floats, each byte's place by itself.
_PLAIN = {f"{name}.list.element": "BYTE_STREAM_SPLIT" if "logp" in name else "PLAIN" for name in _LISTS}
_REPEATED = ("stage", "author", "problem_id", "source", "problem_grader", "question", "answer", "solution")
_REPEATED += ("problem_columns", "prompt", "opening", "text", "extracted", "feedback", "loss", "dropped")


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a file: a text, what it is about, and what became of it.

    Attributes:
      rollout: the text. Its `parent` has a row of its own, unless no model saw it, and so has each of `rejected`.
      problem: what it answers, or is about.
      grader: who rewarded it; empty for a critique.
      is_rejected: an attempt at a critique whose verdict could not be used.
      train_row: what it trains as in its question's group, with the sampler's log-probabilities; None where it is in
        no group.
      place: its number in the group.
      trainer_logp: `[T]` float32, log-probabilities (nats) under the trainer before the updates; None where not
        computed.
      dropped: why it did not train: `zero_advantage`, `truncated` (it is masked), `sampler_cap` (as a whole beyond
        objective.tis_cap), `skipped_update` (the gradient was not finite), `ungraded`, `mention` (of the critique),
        `not_selected`, `replaced` by a refinement, `drawn_on` (its question's group has no gradient, and another
        question's trained in its place), or `no_feedback` (it would be distilled alone); empty where it did, and for
        critiques that train nobody.
      utility: of a critique that a critic learns from, what the refinements after it are worth, from 0 to 1; None of
        others, and where that is not known.
    """

    rollout: Rollout
    problem: Problem
    grader: str = ""
    is_rejected: bool = False
    train_row: TrainRow | None = None
    place: int | None = None
    trainer_logp: np.ndarray | None = None
    dropped: str = ""
    utility: float | None = None


def file_name(iteration: int) -> str:
    """Returns the name of an iteration's file."""
    return f"step_{iteration:08d}.parquet"


def iteration_of(path: pathlib.Path) -> int:
    """Returns the iteration that a file is named after; -1 where it is none of `NAMES`."""
    number = path.stem.removeprefix("step_")
    return int(number) if path.match(NAMES) and number.isdecimal() else -1


# --- writing ------------------------------------------------------------------------------------------------------


def write(path: pathlib.Path, rows: Sequence[Row], *, iteration: int, spell: Callable[[np.ndarray], str]) -> int:
    """Writes the rows of an iteration to a file, which is there whole or not at all; returns its bytes.

    Args:
      path: the file; one of that name is replaced.
      rows: parents before what answers them. No two have the same index.
      iteration: their number.
      spell: token ids to text, control tokens included.

    Raises:
      OSError: it can't be written.
    """
    table = _table(rows, iteration, spell)
    with files.whole_file(path) as temporary:
        parquet.write_table(
            table,
            temporary,
            compression="zstd",
            use_dictionary=list(_REPEATED),  # pyright: ignore[reportArgumentType] - its stub has bool alone
            column_encoding=_PLAIN,
            write_page_checksum=True,
        )
        return temporary.stat().st_size


def _table(rows: Sequence[Row], iteration: int, spell: Callable[[np.ndarray], str]) -> pa.Table:
    numbers = {row.rollout.index: number for number, row in enumerate(rows)}
    if len(numbers) < len(rows):
        raise ValueError("two rows of an iteration have the same index")
    asked: dict[bytes, int] = {}  # the first row with each prompt
    for number, row in enumerate(rows):
        asked.setdefault(row.rollout.prompt_ids.tobytes(), number)
    # The responses to a question share its prompt.
    spelled = {
        key: spell(rows[number].rollout.prompt_ids)
        for key, number in asked.items()
        if key and not rows[number].rollout.asked  # else of another tokenizer, and known as text
    }
    cells = {
        "row": list(range(len(rows))),
        "parent": [_parent(row.rollout, numbers) for row in rows],
        "iteration": [iteration] * len(rows),
    }
    cells |= _problem_cells([row.problem for row in rows]) | _rollout_cells([row.rollout for row in rows], spelled)
    cells |= _reward_cells(rows) | _fate_cells(rows, asked)
    columns = [_array(cells[name], kind) for name, kind, _ in COLUMNS]
    return pa.Table.from_arrays(columns, schema=SCHEMA)


def _parent(rollout: Rollout, numbers: dict[RowIndex, int]) -> int | None:
    """Returns the row that a text answers: of a critique that no model saw, what that is about."""
    parent = rollout.parent
    while parent is not None and parent.index not in numbers:
        parent = parent.parent
    return None if parent is None else numbers[parent.index]


def _problem_cells(problems: Sequence[Problem]) -> dict[str, list]:
    once = {id(one): one for one in problems}  # which many rows share
    ids = {key: problem_id(one) for key, one in once.items()}
    turns = {key: [{"role": role, "text": text} for role, text in one.turns] for key, one in once.items()}
    columns = {key: json.dumps(dict(one.columns), ensure_ascii=False) for key, one in once.items()}
    return {
        "problem_id": [ids[id(one)] for one in problems],
        "problem_index": [one.index for one in problems],
        "source": [one.source for one in problems],
        "problem_grader": [one.grader for one in problems],
        "turns": [turns[id(one)] for one in problems],
        "question": [one.question for one in problems],
        "answer": [one.answer for one in problems],
        "solution": [one.solution for one in problems],
        "problem_columns": [columns[id(one)] for one in problems],
    }


def _rollout_cells(texts: Sequence[Rollout], spelled: dict[bytes, str]) -> dict[str, list]:
    return {
        "stage": [one.stage.name.lower() for one in texts],
        "question_index": [one.index.question for one in texts],
        "response_index": [one.index.response for one in texts],
        "critique_index": [one.index.critique for one in texts],
        "refinement_index": [one.index.refinement for one in texts],
        "attempt": [one.index.attempt for one in texts],
        "author": [str(one.author) for one in texts],
        "weights_step": [one.weights_step for one in texts],
        "prompt": [one.asked or spelled.get(one.prompt_ids.tobytes()) for one in texts],
        "prompt_ids": [one.prompt_ids if len(one.prompt_ids) else None for one in texts],
        "prompt_cut": [one.prompt_cut for one in texts],
        "opening": [one.opening for one in texts],
        "text": [one.text for one in texts],
        "token_ids": [one.token_ids for one in texts],
        "truncated": [one.truncated for one in texts],
        "logp": [one.logp if len(one.prompt_ids) and one.author not in _UNSAMPLED else None for one in texts],
        "ungraded": [one.ungraded for one in texts],
        "extracted": [one.extracted for one in texts],
        "feedback": [one.feedback for one in texts],
        "verdict": [one.verdict for one in texts],
        "shown": [one.shown for one in texts],
        "feedback_ids": [one.feedback_ids for one in texts],
    }


def _reward_cells(rows: Sequence[Row]) -> dict[str, list]:
    rewards = [None if row.rollout.ungraded else row.rollout.reward for row in rows]
    named = zip(rows, rewards, strict=True)
    return {
        "reward": rewards,
        "rewards": [None if reward is None else _named_rewards(row, reward) for row, reward in named],
    }


def _named_rewards(row: Row, reward: float) -> list[dict[str, Any]]:
    """Returns the reward that decides what passes, then the others."""
    others = [{"name": name, "reward": value} for name, value in row.rollout.rewards]
    return [{"name": row.grader, "reward": reward}, *others]


def _fate_cells(rows: Sequence[Row], asked: dict[bytes, int]) -> dict[str, list]:
    refined = [row.rollout.stage == Stage.REFINEMENT for row in rows]
    trains = [row.train_row for row in rows]
    return {
        "rejected": [row.is_rejected for row in rows],
        "kept": [row.place is not None if is_refined else None for row, is_refined in zip(rows, refined, strict=True)],
        "trainer_logp": [row.trainer_logp for row in rows],
        "group_position": [row.place for row in rows],
        "context": [one and asked[one.context_ids.tobytes()] for one in trains],
        "advantage": [one and one.advantage for one in trains],
        "loss": [one and one.loss.name.lower() for one in trains],
        "refined": [row.train_row.refined if row.train_row and row.place is not None else None for row in rows],
        "trained": [row.train_row is not None and not row.dropped for row in rows],
        "dropped": [row.dropped or None for row in rows],
        "utility": [row.utility for row in rows],
    }


def _array(values: list, kind: pa.DataType) -> pa.Array:
    if kind in (IDS, LOGP):
        lengths = [0 if value is None else len(value) for value in values]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        flat = [np.asarray(value, kind.value_type.to_pandas_dtype()) for value in values if value is not None]
        inner = pa.array(np.concatenate(flat) if flat else [], kind.value_type)
        missing = pa.array([value is None for value in values], pa.bool_())
        return pa.ListArray.from_arrays(pa.array(offsets), inner, type=kind, mask=missing)
    try:
        return pa.array(values, kind)
    except UnicodeEncodeError:  # half of a surrogate pair, which UTF-8 can't hold
        return pa.array([text_lib.clean(value) if isinstance(value, str) else value for value in values], kind)


# --- reading ------------------------------------------------------------------------------------------------------


def read(path: str | pathlib.Path) -> list[Row]:
    """Returns the rows that `write` has written, as the records that they were made of.

    Two things are not as they were: what a refinement answers that saw no critique is its response, and a JSON column
    of a problem has JSON's types.

    Raises:
      UserError: there is no such file, or it is damaged, of something else, or of another version.
    """
    table = _checked(local_copies.local(path))
    cells: dict[str, list[Any]] = {
        name: _ndarrays(table[name]) if kind in (IDS, LOGP) else table[name].to_pylist() for name, kind, _ in COLUMNS
    }
    problems: dict[int, Problem] = {}
    rejected: dict[RowIndex, list[Rollout]] = collections.defaultdict(list)
    rows: list[Row] = []
    for number in range(table.num_rows):
        one = {name: values[number] for name, values in cells.items()}
        problem = problems.setdefault(one["question_index"], problem_of(one))
        index = RowIndex(
            question=one["question_index"],
            response=one["response_index"],
            critique=one["critique_index"],
            refinement=one["refinement_index"],
            stage=Stage[one["stage"].upper()],
            attempt=one["attempt"],
        )
        same = index.replace(attempt=0)  # whatever the attempt
        parent = None if one["parent"] is None else rows[one["parent"]].rollout
        rollout = _rollout(one, index, parent)
        if one["rejected"]:
            rejected[same].append(rollout)
        else:
            rollout = rollout.replace(rejected=tuple(rejected[same]))
        rows.append(
            Row(
                rollout=rollout,
                problem=problem,
                grader="" if one["rewards"] is None else one["rewards"][0]["name"],
                is_rejected=one["rejected"],
                train_row=_train_row(one, rollout, cells["prompt_ids"]),
                place=one["group_position"],
                trainer_logp=one["trainer_logp"],
                dropped=one["dropped"] or "",
                utility=one["utility"],
            )
        )
    return rows


def read_columns(path: str | pathlib.Path, names: Sequence[str]) -> pa.Table:
    """Returns some columns of a file, as they are: all rows of a run without the texts and tokens that fill its files.

    Raises:
      UserError: as `read`.
    """
    return _checked(local_copies.local(path), list(names))


def train_groups(rows: Iterable[Row]) -> list[list[TrainRow]]:
    """Returns the group of each question, in their order: what `Learner.update` was given."""
    groups: dict[int, list[tuple[int, TrainRow]]] = collections.defaultdict(list)
    left_out = set()
    for row in rows:
        question = row.rollout.index.question
        group = groups[question]
        if row.train_row is not None and row.place is not None:
            group.append((row.place, row.train_row))
        if row.dropped == "drawn_on":
            left_out.add(question)
    numbers = sorted(groups.keys() - left_out)
    return [[one for _, one in sorted(groups[q], key=lambda placed: placed[0])] for q in numbers]


def _checked(path: pathlib.Path, columns: list[str] | None = None) -> pa.Table:
    try:
        # One file by itself, opened here: pyarrow reads a folder as one table, and takes no name that is not UTF-8.
        with path.open("rb") as opened, parquet.ParquetFile(opened, page_checksum_verification=True) as file:
            said = (file.schema_arrow.metadata or {}).get(VERSION_KEY, b"").decode(errors="replace")
            if said in map(str, READABLE):
                names = file.schema_arrow.names
                return _completed(file.read([one for one in columns if one in names] if columns else None), columns)
    except (OSError, pa.ArrowException) as error:
        what = " ".join(str(error).split())[:160]
        raise UserError(f"{path} can't be read as Parquet ({what}); give a whole file of RUN/rollouts.") from error
    if not said:
        raise UserError(f"{path} holds no rollouts of a run; give a file of RUN/rollouts.")
    raise UserError(f"{path} holds rollouts of version {said}; this program reads {READABLE}; use the other's.")


def _completed(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Returns a table with the columns, of those asked for, that its version did not have, null."""
    for name, kind, _ in COLUMNS:
        if name not in table.column_names and (columns is None or name in columns):
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table


def _ndarrays(column: pa.ChunkedArray) -> list[np.ndarray | None]:
    found: list[np.ndarray | None] = []
    for chunk in column.chunks:
        offsets, values = chunk.offsets.to_numpy(), chunk.values.to_numpy(zero_copy_only=False)
        valid = chunk.is_valid().to_numpy(zero_copy_only=False)
        pairs = zip(offsets, offsets[1:], valid, strict=False)
        found += [values[start:end].copy() if there else None for start, end, there in pairs]
    return found


def problem_of(one: Mapping[str, Any]) -> Problem:
    """Returns the problem of a row, of which `PROBLEM_COLUMNS` are enough."""
    return Problem(
        index=one["problem_index"],
        question=one["question"],
        answer=one["answer"],
        solution=one["solution"],
        source=one["source"],
        grader=one["problem_grader"],
        columns=json.loads(one["problem_columns"]),
        turns=tuple((turn["role"], turn["text"]) for turn in one["turns"]),
    )


def _rollout(one: dict[str, Any], index: RowIndex, parent: Rollout | None) -> Rollout:
    unjudged = 0.0 if one["ungraded"] and index.stage != Stage.CRITIQUE else None
    zeros = functools.partial(np.zeros, len(one["token_ids"]), np.float32)
    return Rollout(
        index=index,
        author=Author(one["author"]),
        weights_step=one["weights_step"],
        prompt_ids=np.zeros(0, np.int32) if one["prompt_ids"] is None else one["prompt_ids"],
        token_ids=one["token_ids"],
        logp=zeros() if one["logp"] is None else one["logp"],
        text=one["text"],
        opening=one["opening"],
        truncated=one["truncated"],
        prompt_cut=one["prompt_cut"],
        asked=one["prompt"] or "" if one["prompt_ids"] is None or one["author"] == Author.REFINER else "",
        parent=parent,
        reward=unjudged if one["reward"] is None else one["reward"],
        rewards=tuple((other["name"], other["reward"]) for other in (one["rewards"] or ())[1:]),
        ungraded=one["ungraded"],
        verdict=one["verdict"],
        extracted=one["extracted"],
        feedback=one["feedback"],
        shown=one["shown"],
        feedback_ids=one["feedback_ids"],
    )


def _train_row(one: dict[str, Any], rollout: Rollout, prompts: Sequence[np.ndarray | None]) -> TrainRow | None:
    if one["context"] is None:
        return None
    context = prompts[one["context"]]
    assert context is not None  # the row was found by its prompt
    return TrainRow(
        context_ids=context,
        target_ids=rollout.token_ids,
        old_logp=rollout.logp,
        advantage=one["advantage"],
        refined=bool(one["refined"]),  # null of a critique, which is in no group
        loss=LossKind[one["loss"].upper()],
        masked=one["dropped"] == "truncated",
        feedback_ids=rollout.feedback_ids,
    )
