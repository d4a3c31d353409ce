"""What `finetune` learns as one, whatever its origin: the rows of a chat, one row, or a pair; and their targets."""

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from cgrpo_jax.errors import UserError
from cgrpo_jax.models.hf.thinking_tags import without_thought
from cgrpo_jax.models.hf.tokenizer import Tokenizer
from cgrpo_jax.records import LossKind, TrainRow


@dataclasses.dataclass(frozen=True)
class Unit:
    """What is drawn as one, and learnt in one update.

    Attributes:
      rows: a row; of a chat, a row or several; of a pair, the chosen one and the rejected one.
      where: its place in its file, for messages: "chat.jsonl, line 3".
      question: what units of one question have in common; empty where that is not known. Of rollouts its `problem_id`.
      utility: of a critique that RCO learns from: how good what it achieved was, from 0 to 1; else None.
      group: what is criticised, whose critiques are compared with each other.
      is_collected: whether it is of rollouts, and not a user's own.
    """

    rows: tuple[TrainRow, ...]
    where: str
    question: str = ""
    utility: float | None = None
    group: str = ""
    is_collected: bool = False


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How long a row may be, in tokens: its targets, and context and targets together, in a token row and the model."""

    max_target: int
    pack_length: int
    max_context: int

    def fault(self, unit: Unit) -> str:
        """Returns why a unit is too long, as a sentence about it to which what to do is added; empty where it fits."""
        sizes = [(len(row.context_ids), len(row.target_ids)) for row in unit.rows]
        for context, target in sizes:
            if target > self.max_target:
                return f"has {target} tokens to learn, more than max_response_length {self.max_target}; raise it,"
            if context + target - 1 > self.pack_length:
                return f"has {context} + {target} tokens, more than packing.length {self.pack_length}; raise it,"
            if context + target - 1 > self.max_context:
                return f"has {context} + {target} tokens, more than the {self.max_context} of the model's context;"
        if unit.rows[0].pair and sizes[0][0] - 1 + sum(target for _, target in sizes) > self.pack_length:
            targets = " + ".join(str(target) for _, target in sizes)
            tokens = f"{sizes[0][0]} + {targets} tokens"
            return f"is a pair of {tokens}, more than one token row of {self.pack_length}; raise it,"
        return ""


def fitting(units: Iterable[Unit], lengths: Lengths, *, on_long: str) -> tuple[list[Unit], int]:
    """Returns the units that fit, and how many do not.

    Raises:
      UserError: one does not, and `on_long` is not "skip".
    """
    kept, skipped = [], 0
    for unit in units:
        if not (why := lengths.fault(unit)):
            kept.append(unit)
        elif on_long == "skip":
            skipped += 1
        else:
            raise UserError(f'{unit.where}: {why} shorten the row, or set finetune.on_long to "skip".')
    return kept, skipped


def target_ids(tokenizer: Tokenizer, context: Sequence[int] | np.ndarray, text: str, *, ends: bool = True) -> list[int]:
    """Returns the tokens of a text as an assistant's turn after a context, its end of turn included if it `ends`.

    They are what the model has to sample there: where the context has opened a thinking part, the text goes on in it.
    """
    said = without_thought(text, tokenizer.thinking_opened_by(context))
    return [*tokenizer.encode_turn(said), *([tokenizer.end_of_turn_id] if ends else [])]


def row_of(
    context: Sequence[int] | np.ndarray,
    target: Sequence[int] | np.ndarray,
    *,
    loss: LossKind = LossKind.NLL,
    pair: int = 0,
    counted: Sequence[bool] | None = None,
) -> TrainRow:
    """Returns a row of weight 1.

    Args:
      context: `[P]` token ids.
      target: `[T]` token ids.
      loss, pair, counted: as `TrainRow` has them.
    """
    return TrainRow(
        context_ids=np.asarray(context, np.int32),
        target_ids=np.asarray(target, np.int32),
        old_logp=np.zeros(len(target), np.float32),
        advantage=1.0,
        loss=loss,
        pair=pair,
        counted=None if counted is None or all(counted) else np.asarray(counted, bool),
    )
