"""What a response is judged by: items with weights, pitfalls, programs, a reference; and the reward of what was found.

    R = sum_i w_i m_i / sum_{w_i > 0} w_i

with m_i the share of the judgements by which item i holds of the response. Weights are those of RaR (arXiv 2507.17746,
Eq. 1) and RLCF (arXiv 2507.18624). A pitfall has a negative weight, as in HealthBench (arXiv 2505.08775): it takes from
the reward where it holds, and is in no denominator, so that 1 is the reward of a response that does all and falls into
nothing. The reward is not cut at 0, where no pitfall would cost a response that has nothing else.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from cgrpo_jax.rewards.answers import Grade
from cgrpo_jax.rewards.sandbox.values import EXPECTED
from cgrpo_jax.runtime import text as text_lib

MAX_ITEMS = 100
MAX_TEXT = 2000  # characters of an item's text
MAX_RUBRIC = 100_000  # characters of a gold answer
MAX_WEIGHT = 1e6
_FINDING = "\n- "  # begins what is said of an item that costs reward, in a grade's reason
_TESTED = "the response's program passes its tests"
_BULLET = re.compile(r"^\s*(?:[-*\u2022]|[0-9]{1,3}[.)])\s+")


@dataclasses.dataclass(frozen=True)
class Item:
    """What holds of a response or does not.

    Attributes:
      text: a sentence that says it.
      weight: what it counts for; negative for a pitfall, which should not hold.
      program: tests as a gold answer of kind `code` has them (`sandbox.gold`): it holds where the response's program
        passes them. Empty for an item that a model judges.
    """

    text: str
    weight: float = 1.0
    program: str = ""


@dataclasses.dataclass(frozen=True)
class Rubric:
    """What a response is judged by.

    Attributes:
      items: one after the other.
      reference: a text that the response is compared with, which counts as an item of weight 1; "" for none.
    """

    items: tuple[Item, ...]
    reference: str = ""

    @property
    def total(self) -> float:
        """The denominator of the reward: what is above 0 of all weights."""
        return sum(max(item.weight, 0.0) for item in self.items) + bool(self.reference)

    @property
    def judged(self) -> list[int]:
        """The places of the items that a model judges."""
        return [place for place, item in enumerate(self.items) if not item.program]


@dataclasses.dataclass(frozen=True)
class Ruling:
    """What was found of an item.

    Attributes:
      share: of its judgements, those by which it holds; of a reference, how often the response is the better one.
      number: of judgements.
      evidence: what they rest on, in one line, or with what was expected in another: a line of the response, what its
        program returns, a test that fails.
    """

    share: float
    number: int = 1
    evidence: str = ""


# --- reading a gold answer ----------------------------------------------------------------------------------------


def read(answer: str, *, only_pitfalls: bool = False) -> Rubric | None:
    """Returns the rubric of a gold answer, None if it holds none.

    Args:
      answer: JSON, `["cites Pythagoras", ...]` or `{"criteria": [...], "reference": "..."}`, where a criterion is a
        text or `{"text": "...", "weight": 2, "program": {"asserts": [...]}}`; else text, a criterion a line.
      only_pitfalls: its items may all be pitfalls, for those of a rubric that stand beside another's.

    Example:
      >>> read('["names the capital", {"text": "guesses", "weight": -0.5}]').items[1]
      Item(text='guesses', weight=-0.5, program='')
    """
    found = _parsed(answer, only_pitfalls=only_pitfalls)
    return found if isinstance(found, Rubric) else None


def fault(answer: str, *, only_pitfalls: bool = False) -> str:
    """Returns why a gold answer can't be read, "" if it can; arguments of `read`.

    Example:
      >>> fault('[{"text": "is short", "weight": NaN}]')
      'weight nan of criterion 1 is no number from -1e+06 to 1e+06 other than 0'
    """
    found = _parsed(answer, only_pitfalls=only_pitfalls)
    return found if isinstance(found, str) else ""


def readable(answers: Sequence[str], programs: Callable[[Sequence[str]], list[bool]]) -> list[bool]:
    """For each gold answer: can it be read, with all programs in it?

    Args:
      answers: gold answers.
      programs: says which tests of programs can be read; called only where there are some.
    """
    rubrics = [read(answer) for answer in answers]
    tests = sorted({item.program for one in rubrics if one for item in one.items if item.program})
    known = dict(zip(tests, programs(tests), strict=True)) if tests else {}
    return [one is not None and all(known[item.program] for item in one.items if item.program) for one in rubrics]


def _parsed(answer: str, *, only_pitfalls: bool) -> Rubric | str:
    """The rubric of a gold answer, or what is wrong with it."""
    if len(answer) > MAX_RUBRIC:
        return f"it has {len(answer)} characters, more than {MAX_RUBRIC}"
    found: Any = None
    if answer.lstrip()[:1] in ("{", "["):
        try:
            found = json.loads(answer)
        except (ValueError, RecursionError):
            return "it is no JSON"
    else:
        found = [_BULLET.sub("", line).strip() for line in answer.splitlines() if line.strip()]
    found = {"criteria": found} if isinstance(found, list) else found
    criteria, reference = found.get("criteria", []), found.get("reference", "")
    if unknown := _unknown(found, ("criteria", "reference")):
        return f"it has {unknown} beside criteria and reference"
    if not isinstance(criteria, list) or not isinstance(reference, str):
        return "its criteria are no list, or its reference is no text"
    if len(criteria) > MAX_ITEMS:
        return f"it has {len(criteria)} criteria, more than {MAX_ITEMS}"
    if not criteria and not reference.strip():
        return "it has no criteria"
    items = []
    for number, one in enumerate(criteria, start=1):
        item = _item(one, number)
        if isinstance(item, str):
            return item
        items.append(item)
    rubric = Rubric(tuple(items), reference if reference.strip() else "")
    if not rubric.total and not only_pitfalls:
        return "all of its criteria are pitfalls, with which no response could earn anything"
    return rubric if text_lib.is_valid(reference) else "its reference is not valid Unicode"


def _unknown(found: Mapping[str, Any], known: Collection[str]) -> str:
    """The fields that nothing reads, in words."""
    return ", ".join(text_lib.quoted(name) for name in found if name not in known)


def _item(one: Any, number: int) -> Item | str:
    """An item of a gold answer, or what is wrong with it."""
    one = {"text": one} if isinstance(one, str) else one
    if not isinstance(one, dict):
        return f"criterion {number} is neither a text nor an object"
    if unknown := _unknown(one, ("text", "weight", "program")):
        return f"criterion {number} has {unknown} beside text, weight and program"
    program = one.get("program", "")
    program = program if isinstance(program, str) else json.dumps(program)
    text, weight = one.get("text", _TESTED if program else ""), one.get("weight", 1)
    if not isinstance(text, str) or not text.strip():
        return f"criterion {number} has no text"
    if len(text) > MAX_TEXT:
        return f"criterion {number} has {len(text)} characters, more than {MAX_TEXT}"
    if not text_lib.is_valid(text):
        return f"criterion {number} is not valid Unicode"
    number_given = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not number_given or not (-MAX_WEIGHT <= weight <= MAX_WEIGHT) or not weight:  # NaN is in no range
        return (
            f"weight {text_lib.quoted(weight)} of criterion {number} is no number from {-MAX_WEIGHT:g} to "
            f"{MAX_WEIGHT:g} other than 0"
        )
    return Item(text, float(weight), program)


# --- what was found -----------------------------------------------------------------------------------------------


def score(rubric: Rubric, shares: Sequence[float]) -> float:
    """Returns the reward of a response, `R` of the module.

    Args:
      rubric: what it is judged by.
      shares: of each item, and of the reference if there is one, the share of its judgements by which it holds.

    Example:
      >>> score(Rubric((Item("cites Pythagoras", 3), Item("is short", 1), Item("guesses", -2))), [1.0, 0.5, 1.0])
      0.375
    """
    return _points(rubric, shares) / rubric.total


def _points(rubric: Rubric, shares: Sequence[float]) -> float:
    weights = [item.weight for item in rubric.items] + [1.0] * bool(rubric.reference)
    return sum(weight * share for weight, share in zip(weights, shares, strict=True))


def grade(rubric: Rubric, rulings: Sequence[Ruling], *, timed_out: bool = False) -> Grade:
    """Returns the grade of a response. Its reason names the items that are met, then each that costs reward.

    Args:
      rubric: what it is judged by.
      rulings: of each item, and of the reference if there is one.
      timed_out: a program ran out of time.
    """
    shares = [ruling.share for ruling in rulings]
    met = [number for number, one in enumerate(zip(rubric.items, shares, strict=False), 1) if _is_met(*one)]
    missed = [number for number in range(1, len(rubric.items) + 1) if number not in met]
    parts = []
    if rubric.items:
        parts.append(f"met: {_listed(met) or 'none'}" + (f"; not met: {_listed(missed)}" if missed else ""))
    if rubric.reference:
        parts.append(f"against the reference: {shares[-1]:g}")
    findings = [text for one in zip(rubric.items, rulings, strict=False) if (text := _finding(*one))]
    if rubric.reference and shares[-1] < 1:
        findings.append("A reference response is better" if shares[-1] < 0.5 else "A reference response is as good")
    said = f"{_points(rubric, shares):g} of {rubric.total:g}"
    reason = "".join(["; ".join(parts), *(f"{_FINDING}{text}" for text in findings)])
    return Grade(score(rubric, shares), said, reason, timed_out=timed_out)


def findings(reason: str, *, reveal: bool = True) -> list[str]:
    """Returns what a grade's reason says of each item that costs reward; without what was expected if not `reveal`.

    Example:
      >>> findings("met: 1; not met: 2\\n- Not met: names Paris. Evidence: It is Rome.")
      ['Not met: names Paris. Evidence: It is Rome.']
    """
    if not reveal:
        reason = re.sub(f"{EXPECTED}[^\n]*", "", reason)
    return [" ".join(one.split()) for one in reason.split(_FINDING)[1:]]


def _is_met(item: Item, share: float) -> bool:
    """Does most of the judgements speak for the response? A pitfall is met where it is avoided."""
    return share > 0.5 if item.weight > 0 else share <= 0.5


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _finding(item: Item, ruling: Ruling) -> str:
    """What is said of an item where it costs reward; else nothing."""
    if ruling.share == (item.weight > 0):
        return ""
    said = "Not met" if item.weight > 0 else "To be avoided"
    against = round((1 - ruling.share if item.weight > 0 else ruling.share) * ruling.number)
    split = f" (by {against} of {ruling.number} judgements)" if ruling.number > 1 else ""
    evidence = f" Evidence: {ruling.evidence}" if ruling.evidence else ""
    return f"{said}: {text_lib.one_line(item.text).removesuffix('.')}{split}.{evidence}"
