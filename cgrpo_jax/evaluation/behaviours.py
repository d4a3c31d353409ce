"""Six behaviours of right answers (arXiv 2506.03106, Fig. 6): two of planning, four of reflection.

A judge behind an endpoint says of each right answer which it shows; what counts is the share of the answers that show
one. Key words say the same crudely: where a judge agrees with them no more than chance, it is not to be trusted.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent import futures
from typing import Any, Protocol

from cgrpo_jax.evaluation.summary import aligned, cell

# Of each: what a judge is asked, and words of those who do it.
BEHAVIOURS = {
    "subgoals": (
        "It parts the problem into steps or subgoals, and says so, before or while it works them.",
        r"\b(first(ly)?,|step \d|to (do|solve|find) (this|that|it),? we|next,|we (first )?need|let'?s break|part \d)",
    ),
    "summary": (
        "It sums up what it has found, at the end or in between.",
        r"\b(in (summary|conclusion|total)|to (summari[sz]e|conclude)|therefore|thus|hence|overall|so,? the answer)\b",
    ),
    "verification": (
        "It checks a result that it has, by another way or by putting it back.",
        r"\b(check(s|ed|ing)?\b|verif(y|ied|ies|ication)|plug(ging)? (it|this|that|back)|substitut\w+ back|confirm)",
    ),
    "backtracking": (
        "It gives a way up that it has begun, or finds a mistake of its own, and goes another way.",
        r"\b(wait\b|actually,|on second thought|(that|this) (is|was) (wrong|not right|incorrect)|try again|instead,|"
        r"go(ing)? back|i made a mistake|scratch that|alternatively)",
    ),
    "backward chaining": (
        "It works from the goal back to what is given.",
        r"\b(work(ing)? backwards?|to (get|reach|obtain) (the|this|that) .{0,40} we (would )?need|"
        r"start(ing)? from the (answer|end|goal|result)|in reverse)",
    ),
    "anticipation": (
        "It looks ahead: it names what may go wrong, special cases, or roughly what will come out, before it has it.",
        r"\b(we (must|should) (be careful|consider|account)|be careful|note that|special case|edge case|otherwise|"
        r"expect(ed)?\b|should be (about|around|roughly)|estimate)",
    ),
}
FILE = "behaviours.jsonl"
_WORDS = {name: re.compile(pattern, re.IGNORECASE) for name, (_, pattern) in BEHAVIOURS.items()}


def by_words(text: str) -> dict[str, bool]:
    """Returns which behaviours an answer shows by its words.

    Example:
      >>> [name for name, shown in by_words("7*8 = 54. Wait, that is wrong: 56. Let me check: 56 / 8 = 7.").items()
      ...  if shown]
      ['verification', 'backtracking']
    """
    return {name: pattern.search(text) is not None for name, pattern in _WORDS.items()}


@dataclasses.dataclass
class Counts:
    """How many of some answers show which behaviour, by their words."""

    answers: int = 0
    shown: dict[str, int] = dataclasses.field(default_factory=lambda: dict.fromkeys(BEHAVIOURS, 0))

    def add(self, texts: Iterable[str]) -> None:
        """Counts further answers."""
        for text in texts:
            self.answers += 1
            for name, shown in by_words(text).items():
                self.shown[name] += shown

    def shares(self) -> dict[str, Any]:
        """Returns `answers`, and in `words` the share of them that show each behaviour; None of no answers."""
        if not self.answers:
            return {"answers": 0, "words": None}
        return {"answers": self.answers, "words": {name: n / self.answers for name, n in self.shown.items()}}


# --- a judge ----------------------------------------------------------------------------------------------------------


class Judge(Protocol):
    """Who says which criteria a text meets: `rewards.judge.Judge`."""

    def check(self, question: str, response: str, criteria: Sequence[str]) -> futures.Future: ...


def right_answers(lines: Iterable[Mapping[str, Any]], *, threshold: float, most: int) -> list[tuple[str, int, str]]:
    """Returns right answers of an evaluation, of each question one: the question, the sample's number, its text.

    It is the greedy answer, numbered -1, where that is right, else the first sample that is.

    Args:
      lines: of `samples.jsonl`.
      threshold: reward from which an answer is right.
      most: questions, the first ones.
    """
    found = []
    for line in lines:
        if len(found) == most:
            break
        texts = [line["greedy"], *line.get("samples", ())]
        rewards = [line["greedy_reward"], *line.get("rewards", ())]
        place = next((n for n, reward in enumerate(rewards) if reward >= threshold), None)
        if place is not None:
            found.append((line["question"], place - 1, texts[place]))
    return found


def judge_all(answers: Sequence[tuple[str, int, str]], judge: Judge) -> list[dict[str, Any]]:
    """Returns a record of each answer: `question`, `sample`, `words`, and `judge`, None where it gave no verdict.

    `failure` says why it gave none.

    Args:
      answers: from `right_answers`.
      judge: whom to ask.
    """
    criteria = [question for question, _ in BEHAVIOURS.values()]
    asked = [judge.check(question, text, criteria) for question, _, text in answers]
    records = []
    for (question, sample, text), future in zip(answers, asked, strict=True):
        found = future.result()
        said = None if found.value is None else dict(zip(BEHAVIOURS, found.value, strict=True))
        record = {"question": question, "sample": sample, "words": by_words(text), "judge": said}
        records.append(record | ({} if said else {"failure": found.failure}))
    return records


def judged(folder: pathlib.Path) -> dict[str, Any]:
    """Returns what the judge of an evaluation's answers said, nothing where none was asked.

    `judged` is the number of answers with a verdict, `judge` the share of them that shows each behaviour, `agreement`
    Cohen's kappa of judge and key words. Of none, `failure` is why the first has none.
    """
    if not (folder / FILE).is_file():
        return {}
    records = [json.loads(line) for line in (folder / FILE).read_text(encoding="utf-8").splitlines()]
    known = [record for record in records if record["judge"] is not None]
    if not known:
        failures = [one["failure"] for one in records if one.get("failure")]
        return {"judged": 0} | ({"failure": failures[0]} if failures else {})
    pairs = {name: [(one["judge"][name], one["words"][name]) for one in known] for name in BEHAVIOURS}
    return {
        "judged": len(known),
        "judge": {name: sum(a for a, _ in some) / len(some) for name, some in pairs.items()},
        "agreement": {name: kappa(some) for name, some in pairs.items()},
    }


def kappa(pairs: Sequence[tuple[bool, bool]]) -> float | None:
    """Cohen's kappa of two who say yes or no (Cohen, 1960); None where chance alone would have them agree.

        (p_o - p_e) / (1 - p_e),  p_e = a b + (1 - a)(1 - b)

    where p_o is the share in which they agree, and a and b are the shares in which each says yes.

    Example:
      >>> kappa([(True, True), (True, False), (False, False), (False, False)])
      0.5
    """
    number = len(pairs)
    same = sum(a == b for a, b in pairs) / number
    first, second = sum(a for a, _ in pairs) / number, sum(b for _, b in pairs) / number
    chance = first * second + (1 - first) * (1 - second)
    return None if chance == 1 else (same - chance) / (1 - chance)


def table(found: Mapping[str, Any]) -> str:
    """Returns what a judge said, from `judged`, as a table."""
    if not found.get("judged"):
        why = f": {found['failure']}" if found.get("failure") else ""
        return f"the judge gave no verdict on behaviours{why}\n"
    rows = [["behaviour", "share", "agreement with key words"]]
    rows += [[name, cell(share), cell(found["agreement"][name])] for name, share in found["judge"].items()]
    return f"behaviours of {found['judged']} right answers\n{aligned(rows)}"
