"""A group in the terminal: on one screen the way from a wrong response to what was learned, or all of its texts."""

import dataclasses
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from cgrpo_jax.report import details
from cgrpo_jax.report.groups import Group, Outcome
from cgrpo_jax.report.run_folder import RunFolder
from cgrpo_jax.runtime import text as text_lib

Row = Mapping[str, Any]

_WORDS = {
    Outcome.ALL_RIGHT: "all right",
    Outcome.MIXED: "mixed",
    Outcome.RESCUED: "rescued",
    Outcome.ALL_WRONG: "unsolved this time",
    Outcome.UNKNOWN: "without a verdict",
}
_TELLING = (Outcome.RESCUED, Outcome.ALL_WRONG, Outcome.MIXED, Outcome.ALL_RIGHT, Outcome.UNKNOWN)
_DROPPED = {
    "zero_advantage": "not trained, as its reward is the group's mean",
    "skipped_update": "not trained, as the update was skipped",
    "ungraded": "no verdict",
    "mention": "not kept, as it mentions the critique",
    "not_selected": "not kept",
    "truncated": "not trained, as it is cut off, and masked",
    "sampler_cap": "not trained, as sampler and trainer disagree beyond the cap",
    "replaced": "not trained, as a refinement took its place",
    "drawn_on": "not trained, as its question taught nothing, and another one was drawn",
    "no_feedback": "not trained, as no teacher has seen a critique of it",
}
_CODES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}


@dataclasses.dataclass(frozen=True)
class Screen:
    """What is written on.

    Attributes:
      width: characters of a line.
      lines: of a text, at most; None for all of them.
      colours: whether escapes for colours are understood.
    """

    width: int = 80
    lines: int | None = 4
    colours: bool = False

    def painted(self, text: str, *codes: str) -> str:
        """Returns a text in a colour, where there are colours."""
        if not self.colours:
            return text
        return f"\x1b[{';'.join(_CODES[code] for code in codes)}m{text}\x1b[0m"

    def body(self, text: str, indent: str = "    ") -> list[str]:
        """Returns a text of a run in lines that fit, what it hides spelled out."""
        found: list[str] = []
        for line in text_lib.shown(text).expandtabs().split("\n"):
            found += textwrap.wrap(line, max(20, self.width - len(indent)), drop_whitespace=False) or [""]
        left = 0 if self.lines is None else len(found) - self.lines
        if left > 0:
            found = [*found[: self.lines], self.painted(f"... {left} lines more", "dim")]
        return [f"{indent}{line}" for line in found]


def most_telling(groups: Sequence[Group]) -> Group:
    """Returns the group that tells most: rescued before others, then the one of which most refinements pass."""
    return min(groups, key=lambda one: (_TELLING.index(one.outcome), -one.refined_passed, one.question))


def counted(groups: Sequence[Group]) -> str:
    """Returns how many groups came to what, in words."""
    counts = Counter(one.outcome for one in groups)
    return ", ".join(f"{counts[outcome]} {_WORDS[outcome]}" for outcome in Outcome if counts[outcome])


def lesson(run: RunFolder, group: Group, screen: Screen) -> str:
    """Returns a group on one screen: its question, a response, that one's critique and refinement, and the others."""
    detail = _detail(run, group)
    rows = {row["row"]: row for row in detail["rows"]}
    refinements = [row for row in rows.values() if row["stage"] == "refinement"]
    best = max(refinements, key=lambda row: (bool(row.get("kept")), row.get("reward") or 0), default=None)
    above: list[Row] = []
    row: Row = best or {}
    while "parent" in row:
        row = rows[row["parent"]]
        above.insert(0, row)
    responses = [row for row in rows.values() if row["stage"] == "response"]
    wrong = [row for row in responses if not _passes(row, run)]
    right = [row for row in responses if _passes(row, run)]
    chain = [*above, *([best] if best else [])] or [*wrong[:1], *right[:1]]
    lines = _head(run, group, detail, screen)
    for one in chain:
        lines += ["", *_text(one, run, screen)]
    others = [one for one in responses if one not in chain]
    if others:
        passed = sum(_passes(one, run) or False for one in others)
        answers = Counter(one.get("extracted") for one in others)
        said = ", ".join(f"{text_lib.one_line(text or 'none')[:40]} ({n})" for text, n in answers.most_common(4))
        lines += ["", screen.painted(f"  {len(others)} other responses, {passed} right; answers: {said}", "dim")]
    return "\n".join(lines) + "\n"


def whole(run: RunFolder, group: Group, screen: Screen) -> str:
    """Returns all texts of a group, each after what it answers, and the prompt that it trains after."""
    detail = _detail(run, group)
    lines = _head(run, group, detail, screen)
    if detail["solution"]:
        lines += ["", screen.painted("  solution of the data", "bold"), *screen.body(detail["solution"])]
    for row in detail["rows"]:
        lines += ["", *_text(row, run, screen)]
    rows = {row["row"]: row for row in detail["rows"]}
    contexts = dict.fromkeys(rows[row["context"]].get("prompt") for row in rows.values() if "context" in row)
    for prompt in contexts:
        if prompt is not None:
            lines += ["", screen.painted("  prompt that they are trained after", "bold")]
            lines += screen.body(detail["prompts"][prompt])
    return "\n".join(lines) + "\n"


def _detail(run: RunFolder, group: Group) -> dict[str, Any]:
    (found,) = details.of_groups(run, [group], None)
    return found


def _head(run: RunFolder, group: Group, detail: Mapping[str, Any], screen: Screen) -> list[str]:
    flags = sorted(flag.replace("_", " ") for flag in group.flags if flag != "rescued")
    came_to = ", ".join([_WORDS[group.outcome], *flags])
    right = f"{group.passed} of {len(group.rewards)} responses right"
    if group.refined:
        right += f", {group.refined_passed} of {group.refined} refinements"
    name = text_lib.one_line(run.name)
    lines = [
        screen.painted(f"{name}, iteration {group.iteration}, question {group.problem}: {came_to}", "bold"),
        screen.painted(f"{right}; {group.trained} texts trained", "dim"),
        "",
    ]
    for turn in detail["turns"]:
        lines += [f"  {screen.painted(text_lib.one_line(turn['role']), 'dim')}", *screen.body(turn["text"])]
    lines += screen.body(detail["question"], "  ")
    return [*lines, screen.painted(f"  gold answer: {text_lib.one_line(detail['answer'])[: screen.width]}", "dim")]


def _text(row: Row, run: RunFolder, screen: Screen) -> list[str]:
    passes = _passes(row, run)
    stage = row["stage"]
    if stage == "critique":
        verdict = {True: "says right", False: "says wrong", None: "no verdict"}[row.get("verdict")]
        used = ", not used" if row.get("rejected") else ""
        by = "a rule" if row["author"] == "rule" else f"the {row['author']}"
        head = screen.painted(f"  {'':2}critique by {by}", "yellow") + f", {verdict}{used}"
    else:
        mark = {True: "\N{CHECK MARK}", False: "\N{BALLOT X}", None: "?"}[passes]
        colour = {True: "green", False: "red", None: "yellow"}[passes]
        number = f" {row['response_index'] + 1}" if stage == "response" else f" of response {row['response_index'] + 1}"
        head = screen.painted(f"  {mark} {stage}{number}", colour) + f", {_fate(row)}"
    cut = ", cut off" if row.get("truncated") else ""
    return [f"{head}{cut}", *screen.body(row.get("opening", "") + row["text"])]


def _fate(row: Row) -> str:
    reward = "no verdict" if row.get("reward") is None else f"reward {row['reward']:g}"
    if row.get("trained"):
        alone = " as an answer to the question alone" if row["stage"] == "refinement" else ""
        return f"{reward}, trained{alone}, advantage {row['advantage']:+.3g}"
    return f"{reward}, {_DROPPED.get(row.get('dropped', ''), 'not trained')}"


def _passes(row: Row, run: RunFolder) -> bool | None:
    return None if row.get("reward") is None else row["reward"] >= run.facts.pass_threshold
