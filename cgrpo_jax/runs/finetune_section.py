"""The section of a configuration that says what `finetune` learns, and from which rows."""

import dataclasses
from typing import Any

from cgrpo_jax.datasets import chat_rows, rollout_rows
from cgrpo_jax.runs.keys import ALL, at_least_one, key, not_negative, one_of, positive

LOSSES = ("nll", "rco", "dpo")
STAGES = ("response", "critique", "refinement")
_NOT_NLL = {"finetune.loss": ("rco", "dpo")}


def _stages(name: str, value: Any) -> str | None:
    if value and len(set(value)) == len(value) and set(value) <= set(STAGES):
        return None
    return f"{name} {tuple(value)} is not possible; use some of {', '.join(STAGES)}, each once."


@dataclasses.dataclass(frozen=True)
class Finetune:
    """What `cgrpo finetune` learns: rows of data.train, chats, prompts with completions, pairs, or rollouts."""

    loss: str = key(
        "nll",
        "nll: likelihood of the targets; rco: a critic, by what its critiques achieve; dpo: pairs",
        one_of(*LOSSES),
    )
    beta: float = key(
        0.1,
        "[beta] of rco and dpo: the larger, the nearer to the weights that it starts from",
        positive("can't divide, or compare", "0.1"),
        unread_with={"finetune.loss": ("nll",)},
    )
    rows: str = key(
        "",
        "files or folders of rows in the place of data.train, where that, or a made-up task, is of questions to grade",
        is_path=True,
    )
    eval_rows: str = key("", "likewise, held-out rows: their loss is measured (eval.every)", is_path=True)
    epochs: int = key(
        3,
        "passes over the rows; 0: num_iterations updates",
        not_negative,
        may_change=ALL,
        because="how long training goes on, unless the learning rate falls over them",
    )
    rows_per_update: int = key(32, "chats, rows or pairs of an update", at_least_one)
    on_long: str = key(
        "error", "a row beyond max_response_length or packing.length: error, skip", one_of("error", "skip")
    )
    turns: str = key(
        "all", "of the assistant in a chat, that are learnt: all, last", one_of(*chat_rows.TURNS), unread_with=_NOT_NLL
    )
    stages: tuple[str, ...] = key(
        ("response", "refinement"),
        "of rollouts, that are learnt: response, critique, refinement (rco: critiques)",
        _stages,
        unread_with={"finetune.loss": ("rco",)},
    )
    which: str = key(
        "right",
        "of these: right ones, of critiques those whose verdict is; agreeing: of these, refinements after such "
        "critiques alone; all",
        one_of(*rollout_rows.WHICH),
        unread_with=_NOT_NLL,
    )
    context: str = key(
        "question",
        "what a refinement is learnt after: the question alone; prompt: as it was written",
        one_of(*rollout_rows.CONTEXTS),
    )
    max_per_question: int = key(
        0,
        "different rows (pairs) of a question, drawn at random, where there are rollouts of these alone; 0: all, of "
        "rollouts all different ones (nll)",
        not_negative,
    )
