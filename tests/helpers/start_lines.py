"""The lines that a start says on standard error before anything else, an error included."""

import re

_LINE = re.compile(
    r"(?:train|finetune|evaluate|diagnose): starting in .*|devices: .*|lengths from the model's context .*|model: .*"
    r"|reading and checking the questions|questions: .*|folder: .*"
    r"|reading and tokenising the rows|(?:training|held-out) rows: .*"
    r"|\d+ (?:training|held-out) questions are longer than .*"
)


def without(err: str) -> str:
    """Returns what is left of a program's standard error without them."""
    return "".join(line for line in err.splitlines(keepends=True) if not _LINE.fullmatch(line.rstrip("\n")))
