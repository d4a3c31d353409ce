"""The lines that a start says on standard error before anything else, an error included."""

import re

_LINE = re.compile(
    r"(?:train|finetune|evaluate|diagnose|collect|sample): starting in .*|devices: .*|model: .*|critic: .*"
    r"|lengths from the model's context .*"
    r"|reading and checking the questions|questions: .*|folder: .*"
    r"|reading and tokenising the rows| *(?:training|held-out) rows: .*|reading rows: .*"
    r"|\d+ (?:training|held-out) questions are longer than .*"
)


def without(err: str) -> str:
    """Returns what is left of a program's standard error without them, and without a progress bar that has ended."""
    return "".join(line for line in err.splitlines(keepends=True) if not _is_of_a_start(line))


def _is_of_a_start(line: str) -> bool:
    return bool(_LINE.fullmatch(line.rstrip("\r\n"))) or (line.endswith("\r") and not line.strip())
