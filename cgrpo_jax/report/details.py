"""The texts of the groups that a report shows whole, and the numbers of their tokens, ready to become JSON."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from cgrpo_jax.critiques.texts import states_answer
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.report.groups import Group
from cgrpo_jax.report.run_folder import RunFolder

Spell = Callable[[Sequence[int]], str]  # token ids to text, control tokens included
LOGP_SCALE = 10_000  # log-probabilities are whole numbers of ten thousandths of a nat
MOST_CHARACTERS = 2_000_000  # of a text; what is longer is cut in the page, and said to be

_ROW = ("row", "parent", "stage", "response_index", "critique_index", "refinement_index", "attempt", "author")
_ROW += ("weights_step", "prompt_cut", "opening", "truncated", "reward", "rewards", "ungraded", "extracted")
_ROW += ("feedback", "verdict", "rejected", "kept", "group_position", "context", "advantage", "loss", "refined")
_ROW += ("trained", "dropped")
_QUESTION = ("turns", "question", "answer", "solution", "problem_columns")
_TOKENS = ("token_ids", "logp", "trainer_logp")
COLUMNS = ("question_index", "prompt", "text", *_ROW, *_QUESTION, *_TOKENS)


def of_groups(
    run: RunFolder, groups: Sequence[Group], spell: Spell | None, faults: list[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Yields the details of groups of one run, in the order of their iterations.

    A group has `iteration` and `question_index`, its question's columns, `prompts` and `rows`: the columns of the
    rollouts by name, numbers in the file in `row`, `parent` and `context`, prompts by their number in `prompts`, and
    where tokens can be told apart `pieces`, their texts, with `logp` and `trainer_logp` in units of 1 / LOGP_SCALE
    nats. A critique has `states`, whether the gold answer stands in it.

    Args:
      run: the run.
      groups: of it.
      spell: of its tokenizer; None shows no tokens.
      faults: where given, a file whose texts are damaged is left out and said here.

    Raises:
      UserError: a file of rollouts is damaged, and no `faults` are given.
    """
    wanted: dict[int, set[int]] = {}
    for one in groups:
        wanted.setdefault(one.iteration, set()).add(one.question)
    pieces = None if spell is None else Pieces(spell)
    for path in run.files:
        if questions := wanted.get(rollouts.iteration_of(path)):
            try:
                table = rollouts.read_columns(path, COLUMNS)
            except UserError as error:
                if faults is None:
                    raise
                faults.append(f"{run.name}: {error}")
                continue
            numbers = np.asarray(table["question_index"])
            for question in sorted(questions):
                own = table.take(pa.array(np.flatnonzero(numbers == question)))
                yield {"iteration": rollouts.iteration_of(path), "question_index": question} | _detail(own, pieces)


def _detail(table: pa.Table, pieces: "Pieces | None") -> dict[str, Any]:
    rows = table.to_pylist()
    prompts: dict[str, int] = {}
    shown = []
    for row in rows:
        one = {name: row[name] for name in _ROW if row[name] or (row[name] == 0 and row[name] is not False)}
        for name in ("reward", "advantage"):
            if row[name] is not None:  # 0 says something, too
                one[name] = finite(row[name])
        if row["rewards"]:
            one["rewards"] = [[reward["name"], finite(reward["reward"])] for reward in row["rewards"]]
        if row["verdict"] is not None:
            one["verdict"] = row["verdict"]
        if row["stage"] == "critique":
            one["states"] = states_answer(row["text"], [row["answer"], row["solution"] or ""])
        if row["prompt"]:
            one["prompt"] = prompts.setdefault(shortened(row["prompt"]), len(prompts))
        shown.append(one | _text(row, pieces))
    first = rows[0]
    return {name: first[name] for name in _QUESTION} | {"prompts": list(prompts), "rows": shown}


def _text(row: Mapping[str, Any], pieces: "Pieces | None") -> dict[str, Any]:
    """Returns a text, or the pieces that it is made of, with the numbers of each."""
    text = row["text"]
    if row["logp"] is None or pieces is None or row["stage"] == "critique" or len(text) > MOST_CHARACTERS:
        return {"text": shortened(text)}
    parted = pieces.of(row["token_ids"], text)
    if parted is None:
        return {"text": shortened(text)}
    found: dict[str, Any] = {"pieces": parted, "end": len("".join(parted)) - len(text)}
    for name in ("logp", "trainer_logp"):
        if row[name] is not None:
            found[name] = [scaled(value) for value in row[name]]
    return found


class Pieces:
    """The text of each token, so that the pieces of a row are its text; what a token of half a character ends is its.

    Args:
      spell: token ids to text, control tokens included.
    """

    WINDOW = 6  # tokens before one that decide how it is spelled

    def __init__(self, spell: Spell):
        self._spell = spell
        self._known: dict[int, str] = {}

    def of(self, ids: Sequence[int], text: str) -> list[str] | None:
        """Returns the pieces of a row; None where they are not its text with at most an end of turn after it."""
        for found in (self._alone(ids), self._in_context(ids)):
            if "".join(found).startswith(text):
                return found
        return None

    def _alone(self, ids: Sequence[int]) -> list[str]:
        for one in ids:
            if one not in self._known:
                self._known[one] = self._spell([one])
        return [self._known[one] for one in ids]

    def _in_context(self, ids: Sequence[int]) -> list[str]:
        """Spells each token after those before it: SentencePiece marks words so, and bytes join to characters."""
        found: list[str] = []
        begun = 0  # of the tokens whose text is whole
        for at in range(len(ids)):
            first = max(0, begun - self.WINDOW)
            before, whole = self._spell(ids[first:begun]), self._spell(ids[first : at + 1])
            if whole.endswith("\N{REPLACEMENT CHARACTER}") and at + 1 < len(ids):
                found.append("")
            else:
                found.append(whole[len(before) :])
                begun = at + 1
        return found


def text_of(row: Mapping[str, Any]) -> str:
    """Returns the text of a row of `of_groups`."""
    if "text" in row:
        return row["text"]
    whole = "".join(row["pieces"])
    return whole[: len(whole) - row["end"]]


def scaled(logp: float) -> int | None:
    """Returns a log-probability (nats) in whole units of 1 / LOGP_SCALE; None where it is not finite."""
    return round(logp * LOGP_SCALE) if math.isfinite(logp) else None


def finite(value: float | None) -> float | None:
    """Returns a number for JSON, which has no others than finite ones."""
    return value if value is not None and math.isfinite(value) else None


def shortened(text: str, most: int = MOST_CHARACTERS) -> str:
    """Returns a text, or its beginning and how much is left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]} ... [{len(text) - most} characters more]"
