"""A user's own rows as what `finetune` learns: chats, prompts with completions, pairs, critiques with utilities.

| a row's columns | it is |
|---|---|
| `messages` (or `conversations`) | a chat: all turns of the assistant are learnt, or the last |
| `prompt`, `completion` | what is asked, and what is learnt |
| the question's and the solution's, by their keys | likewise |
| the question's by its key, `response`, `critique` | a critique, after the prompt that asks for one of the response |
| `prompt`, `chosen`, `rejected` | a pair |
| `chosen`, `rejected` | a pair of chats that part at the assistant's last turn |
| `prompt`, `completion`, `utility` | a critique, and what it achieved |

A prompt is a text, which is asked as questions are, or a list of messages, which stands as it is; a completion is a
text, or a list of one message. What is learnt of a turn is what the model has to sample: its tokens after the prompt
that the chat template makes of all before, and the end of the turn. So no template has to mark the assistant's tokens
(TRL's `assistant_only_loss` needs `{% generation %}`), and one that shows earlier turns otherwise, without their
thoughts say, is trained as it will be asked.
"""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from cgrpo_jax.critiques.prompts import Prompts
from cgrpo_jax.datasets import cells, tables
from cgrpo_jax.datasets.units import Unit, row_of, target_ids
from cgrpo_jax.errors import UserError
from cgrpo_jax.records import LossKind, Problem, TrainRow, Turn, has_system_turn, transcript

TURNS = ("all", "last")
_CHATS = ("messages", "conversations")
_NEEDS = {
    LossKind.NLL: "messages, or prompt and completion",
    LossKind.DPO: "chosen and rejected, and prompt where these are no whole chats",
    LossKind.RCO: "prompt, completion and utility",
}


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads rows; what it finds wrong with one is an error that names it.

    Attributes:
      prompts: of the model that learns.
      loss: kind of loss that the rows are for.
      turns: which of an assistant's turns are learnt: `all`, or the `last`.
      max_target: tokens that a row may learn: a chat with more is not joined into one row.
      question_key, solution_key: columns of a question and its solution, the latter empty for none.
    """

    prompts: Prompts
    loss: LossKind
    turns: str
    max_target: int
    question_key: str
    solution_key: str

    def units(self, path: str | pathlib.Path) -> Iterator[Unit]:
        """Yields the units of a file, or of the files of a folder.

        Raises:
          UserError: a file or a row can't be read, or has not what its loss needs; the row is named.
        """
        for where, row in tables.rows(path):
            try:
                yield self._form(row)(row, where)
            except UserError as error:
                text = str(error)
                raise UserError(text if text.startswith(where) else f"{where}: {text}") from error

    def _form(self, row: Mapping[str, Any]) -> Callable[[Mapping[str, Any], str], Unit]:
        """Returns what reads a row that has such columns."""
        names = {name for name, value in row.items() if value is not None}
        if self.loss == LossKind.DPO and {"chosen", "rejected"} <= names:
            return self._pair
        if self.loss == LossKind.DPO and names & {"chosen", "rejected"}:
            there, lacks = ("chosen", "rejected") if "chosen" in names else ("rejected", "chosen")
            raise UserError(
                f"a pair with one row: it has {there!r}, but no {lacks!r}; give both, or leave the row out."
            )
        if self.loss == LossKind.RCO and {"prompt", "completion", "utility"} <= names:
            return self._critique
        if self.loss == LossKind.NLL:
            if names & set(_CHATS):
                return self._chat
            if {"prompt", "completion"} <= names:
                return self._completion
            asked = {key.strip() for key in self.question_key.split(",")}
            if {"response", "critique"} | asked <= names:
                return self._given_critique
            if self.solution_key and asked <= names:
                return self._solution
        given = ", ".join(repr(name) for name in row) or "none"
        solution = ", or data.question_key and data.solution_key" if self.loss == LossKind.NLL else ""
        raise UserError(
            f"its columns are {given}; finetune.loss {self.loss.name.lower()!r} needs {_NEEDS[self.loss]}{solution}; "
            "rename them."
        )

    # --- forms --------------------------------------------------------------------------------------------------

    def _chat(self, row: Mapping[str, Any], where: str) -> Unit:
        name = next(name for name in _CHATS if row.get(name) is not None)
        turns = _turns(row[name], name)
        said = _learnt(turns)
        if not said:
            whose = ", ".join(role for role, _ in turns)
            raise UserError(
                f"no turn of the assistant that answers one of the user (roles: {whose}); it teaches nothing."
            )
        pieces = []
        for number in said if self.turns == "all" else said[-1:]:
            text = turns[number][1]
            if not text.strip():
                raise UserError(f"turn {number + 1}, the assistant's, is empty; fill it, or leave the row out.")
            pieces.append(self._piece(self._ids(turns[:number]), text))
        rows = tuple(_joined(pieces, self.max_target))
        return Unit(rows, where, question=_key(turns[: said[0]]))

    def _completion(self, row: Mapping[str, Any], where: str) -> Unit:
        turns, context = self._prompt(row["prompt"])
        context, target = self._piece(context, _completion(row["completion"], "completion"))
        return Unit((row_of(context, target),), where, question=_key(turns))

    def _solution(self, row: Mapping[str, Any], where: str) -> Unit:
        question = tables.column(row, self.question_key, where, named_by="data.question_key")
        turns = tables.turns(row, self.question_key, where)
        text = tables.solution_column(row, self.solution_key, where, named_by="data.solution_key")
        if not text.strip():
            raise UserError(f"column '{self.solution_key}' is empty; fill it, or leave the row out.")
        context, target = self._piece(self.prompts.for_question(question, turns).tolist(), text)
        return Unit((row_of(context, target),), where, question=_key([*turns, ("user", question)]))

    def _given_critique(self, row: Mapping[str, Any], where: str) -> Unit:
        question = tables.column(row, self.question_key, where, named_by="data.question_key")
        turns = tables.turns(row, self.question_key, where)
        response, critique = (_completion(row[name], name) for name in ("response", "critique"))
        asked = [*turns, ("user", question)]
        whole = transcript(Problem(0, question, "", None, turns=tuple(turns)))
        context = self.prompts.for_critique(whole, response, None)[0].tolist()
        return Unit((row_of(*self._piece(context, critique)),), where, question=_key(asked))

    def _critique(self, row: Mapping[str, Any], where: str) -> Unit:
        utility = row["utility"]
        if isinstance(utility, bool) or not isinstance(utility, int | float) or not math.isfinite(utility):
            raise UserError(f"column 'utility' is {utility!r}; give a finite number, from 0 to 1.")
        if not 0 <= utility <= 1:
            raise UserError(f"column 'utility' is {utility:g}; give a number from 0 to 1.")
        turns, context = self._prompt(row["prompt"])
        context, target = self._piece(context, _completion(row["completion"], "completion"))
        rows = (row_of(context, target, loss=LossKind.RCO),)
        return Unit(rows, where, question=_key(turns), utility=float(utility), group=_key(turns))

    def _pair(self, row: Mapping[str, Any], where: str) -> Unit:
        if row.get("prompt") is not None:
            turns, context = self._prompt(row["prompt"])
            texts = [_completion(row[name], name) for name in ("chosen", "rejected")]
        else:
            turns, texts = _parted(row)
            context = self._ids(turns)
        if texts[0] == texts[1]:
            raise UserError("'chosen' and 'rejected' are the same, which prefers nothing; leave the row out.")
        rows = tuple(
            row_of(*self._piece(context, text), loss=LossKind.DPO, pair=pair)
            for text, pair in zip(texts, (1, -1), strict=True)
        )
        return Unit(rows, where, question=_key(turns))

    # --- parts --------------------------------------------------------------------------------------------------

    def _prompt(self, value: Any) -> tuple[list[Turn], list[int]]:
        """Returns the turns of a prompt, and its tokens: a chat as it stands, a text as a question is asked."""
        if isinstance(value, str):
            if not value.strip():
                raise UserError("column 'prompt' is empty; fill it, or leave the row out.")
            cells.check_text(value, "column 'prompt'")
            return [("user", value)], self.prompts.for_question(value).tolist()
        turns = _turns(value, "prompt")
        if turns[-1][0] == "assistant":
            raise UserError("the chat in column 'prompt' ends with the assistant's turn, so nothing is asked.")
        return turns, self._ids(turns)

    def _ids(self, turns: Sequence[Turn]) -> list[int]:
        """Returns the prompt that a chat makes, up to where the assistant's turn begins."""
        system = self.prompts.system and not has_system_turn(turns)
        messages = [("system", self.prompts.system), *turns] if system else turns
        return self.prompts.tokenizer.chat_ids([{"role": role, "content": text} for role, text in messages])

    def _piece(self, context: Sequence[int], text: str) -> tuple[list[int], list[int]]:
        context = list(context)
        return context, target_ids(self.prompts.tokenizer, context, text)


# What these find wrong with a row is the end of a sentence that begins with its place.


def _turns(value: Any, column: str) -> list[Turn]:
    """Returns the turns of a chat in a column."""
    messages = cells.chat(value)
    if messages is None:
        raise UserError(f"column '{column}' holds no chat; give a list of messages, each with a role and a content.")
    for number, (role, text) in enumerate(messages, start=1):
        if not role or text is None:
            what = "text, as of a call of a tool" if role else "role"
            raise UserError(f"turn {number} of the chat in column '{column}' has no {what}; leave the row out.")
        cells.check_text(text, f"turn {number} of the chat in column '{column}'")
    return [(role, text) for role, text in messages if role and text is not None]


def _learnt(turns: Sequence[Turn]) -> list[int]:
    """Returns the numbers of the assistant's turns that answer something: not of a greeting before any question."""
    asked = next((number for number, (role, _) in enumerate(turns) if role == "user"), len(turns))
    return [number for number, (role, _) in enumerate(turns) if role == "assistant" and number > asked]


def _completion(value: Any, column: str) -> str:
    """Returns the text of a completion, or of a pair's row: a text, or a chat of one turn of the assistant."""
    if not isinstance(value, str):
        turns = _turns(value, column)
        if len(turns) != 1 or turns[0][0] != "assistant":
            raise UserError(
                f"column '{column}' has {len(turns)} turns after a prompt; give the assistant's answer alone."
            )
        value = turns[0][1]
    if not value.strip():
        raise UserError(f"column '{column}' is empty; fill it, or leave the row out.")
    return cells.check_text(value, f"column '{column}'")


def _parted(row: Mapping[str, Any]) -> tuple[list[Turn], list[str]]:
    """Returns the turns that both chats of a pair share, and the assistant's last turn of each."""
    chats = {name: _turns(row[name], name) for name in ("chosen", "rejected")}
    for name, turns in chats.items():
        if turns[-1][0] != "assistant" or not _learnt(turns):
            raise UserError(f"the chat in column '{name}' does not end with the assistant's answer; end it there.")
    if chats["chosen"][:-1] != chats["rejected"][:-1]:
        raise UserError("'chosen' and 'rejected' part before the assistant's last turn; give them one 'prompt'.")
    return chats["chosen"][:-1], [_completion(turns[-1][1], name) for name, turns in chats.items()]


def _joined(pieces: Sequence[tuple[list[int], list[int]]], max_target: int) -> Iterator[TrainRow]:
    """Yields the turns of a chat as few rows: one where each turn's prompt goes on where the turn before has ended.

    Token for token the same is learnt as in rows apart, each with its own prompt, but what they share is there once.
    Where a template shows an earlier turn otherwise than it is learnt, or `max_target` is reached, another row begins.
    """
    context: list[int] = []
    target: list[int] = []
    counted: list[bool] = []
    for prompt, said in pieces:
        done = len(context) + len(target)
        goes_on = context and len(prompt) >= done and prompt[: len(context)] == context
        goes_on = goes_on and prompt[len(context) : done] == target
        between = prompt[done:]
        if not goes_on or len(target) + len(between) + len(said) > max_target:
            if context:
                yield row_of(context, target, counted=counted)
            context, target, counted = prompt, [], []
            between = []
        target = [*target, *between, *said]
        counted = [*counted, *[False] * len(between), *[True] * len(said)]
    if context:
        yield row_of(context, target, counted=counted)


def _key(turns: Sequence[Turn]) -> str:
    return repr(list(turns))
