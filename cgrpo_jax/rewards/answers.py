"""Final answers: where a response has one, and the kinds of answer that are compared without a mathematics parser.

  - `numeric`: the final number, within a relative tolerance.
  - `choice`: one letter, A to J.
  - `exact`: a line, up to whitespace.
  - `trace`: everything after the last "Answer:", up to whitespace.

All of it takes time linear in the response, so it may run beside the training loop.
"""

import dataclasses
import math
import re
from collections.abc import Callable

from cgrpo_jax.runtime import text as text_lib

MAX_ANSWER_CHARS = 1000  # no gold answer is near this long
_MAX_GAP = 40  # characters between boxes that are one answer

Compared = tuple[float, str | None, str]  # the score, extracted and reason of a `Grade`

_BOX = r"\\(?:f?boxed|fbox)\s*\{"
_BOX_OR_BRACE = re.compile(_BOX + r"|\\[{}]|[{}]")
_BETWEEN_BOXES = re.compile(r"[\s$.]*(?:,|,?\s*\band\b|,?\s*\bor\b)[\s$]*")
_ANSWER = "Answer:"
# "The answer is", "**Answer:**", "The correct option is", and GSM8K's "####".
_SAID = re.compile(
    r"(?i:\banswers?\b(?:\s+(?:is|are|was|=)\b|\s*(?:[*_]+\s*)?[:=])|\bcorrect\s+(?:option|choice)\s+is\b)|####"
)
_SENTENCE = re.compile(r"[^\n]*?(?=\n|$|[.!?](?:\s|$))")


@dataclasses.dataclass(frozen=True)
class Grade:
    """Verdict on one response. Its texts, which may quote a program or an endpoint, are valid Unicode.

    Attributes:
      score: 1.0 if the final answer is right, else 0.0; what lies between, or beyond, comes from a judge or a user's
        own function.
      extracted: the final answer as it was read, None if there was none.
      reason: why, in a few words; "timed out after 5 s" where the time limit struck.
      timed_out: the grader was killed at its time limit. Count these: they are zeros that say nothing of the answer.
      failed: there is no verdict: the score is 0 because the grader failed, whatever the response is worth.
    """

    score: float
    extracted: str | None
    reason: str
    timed_out: bool = False
    failed: bool = False

    def __post_init__(self):
        for name in ("extracted", "reason"):
            if isinstance(value := getattr(self, name), str):
                object.__setattr__(self, name, text_lib.clean(value))


def without_thinking(text: str) -> str:
    """The text after the thinking part; empty if a `<think>` was never closed."""
    return text.rpartition("</think>")[2].partition("<think>")[0]


def boxed(text: str) -> str | None:
    r"""Contents of the last `\boxed{...}`, or None. Boxes joined by "and", "or" or a comma are one answer: "1, 2".

    Only the last one counts, so a response can't collect the reward by boxing every candidate.
    """
    spans: list[tuple[int, int, str]] = []
    opened: list[tuple[int, int]] = []  # where each open brace's box begins, -1 if it is none, and its content
    for found in _BOX_OR_BRACE.finditer(text):
        token = found.group()
        if token[-1] == "{" and token != r"\{":
            opened.append((found.start() if len(token) > 1 else -1, found.end()))
        elif token == "}" and opened:
            start, content = opened.pop()
            if start >= 0 and found.start() - content <= MAX_ANSWER_CHARS:
                while spans and spans[-1][0] > start:
                    spans.pop()  # a box within this one
                spans.append((start, found.end(), text[content : found.start()]))
    if not spans:
        return None
    first, _, content = spans.pop()
    while spans and first - spans[-1][1] <= _MAX_GAP and _BETWEEN_BOXES.fullmatch(text, spans[-1][1], first):
        first, _, earlier = spans.pop()
        content = f"{earlier}, {content}"
    return content.strip()


def breaks_off(text: str) -> bool:
    r"""Does the text end within a box that it never closes, as one that was cut at its longest may?

    Example:
      >>> breaks_off(r"so it is \boxed{12")
      True
    """
    last = None
    for found in re.finditer(_BOX, text):
        last = found
    return last is not None and boxed(text[last.start() :]) is None


def said(text: str) -> str | None:
    """What follows the last "answer is", "answer:" or "####", to the end of the sentence; None if there is none."""
    last = None
    for found in _SAID.finditer(text):
        last = found
    sentence = None if last is None else _SENTENCE.match(text, last.end())
    return None if sentence is None else sentence.group().strip(" *_:$")


def _compare(extracted: str | None, answer: str) -> Compared:
    if not answer:
        return 0.0, None, "gold answer '' can't be read"
    if not extracted:
        return 0.0, None, "no answer found"
    return float(extracted == answer), extracted[:200], "equal" if extracted == answer else "not equal"


# --- exact, trace -------------------------------------------------------------------------------------------------


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _bare(text: str) -> str:
    """Text without emphasis and a final full stop: "** True." is "True"."""
    return _squeeze(text.strip(" *_$`\n").removesuffix(".").rstrip(" *_$`"))


def exact(response: str, answer: str) -> Compared:
    r"""Compares the line after the last "Answer:", else the last box, else the whole response."""
    _, found, rest = response.rpartition(_ANSWER)
    if not found and (box := boxed(response)) is not None:
        return _compare(_bare(box), _bare(answer))
    if not found:
        return _compare(_squeeze(response), _squeeze(answer))
    lines = rest.strip(" *_\n").splitlines()
    return _compare(_bare(lines[0]) if lines else "", _bare(answer))


def trace(response: str, answer: str) -> Compared:
    """Compares everything after the last "Answer:"."""
    _, found, rest = response.rpartition(_ANSWER)
    return _compare(_squeeze(rest) if found else "", _squeeze(answer))


def has_text(answer: str) -> bool:
    """Is there anything in a gold answer of kind `exact` or `trace`?"""
    return bool(answer.strip())


# --- numeric ------------------------------------------------------------------------------------------------------

_MINUS = "-\u2212\u2013"
_DIGITS = r"(?:[0-9]{1,3}(?:(?:,|\{,\}|\\,)[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
_SIGN = rf"(?:(?<![\w.)\]}}])[{_MINUS}])?\s?\\?[$\u20ac\u00a3]?\s?"
_POWER = rf"\s?(?:\\times|\\cdot|\u00d7|\*|x)\s?10\s?(?:\^|\*\*)\s?\{{?\(?(?P<power>[{_MINUS}+]?[0-9]{{1,3}})\)?\}}?"
_EXPONENT = r"[eE](?P<exponent>[-+]?[0-9]{1,3})(?![\w.])"
_NUMBER = re.compile(
    rf"{_SIGN}(?:\\[dtc]?frac\s?\{{\s?(?P<above>{_DIGITS})\s?\}}\s?\{{\s?(?P<below>{_DIGITS})\s?\}}"
    rf"|(?P<value>{_DIGITS})(?:{_EXPONENT}|{_POWER}|\s?/\s?(?P<divisor>{_DIGITS})(?![\w/]))?)"
)
# A whole number and a proper fraction: "2 1/2" and "2\frac{1}{2}".
_MIXED = re.compile(
    rf"(?P<number>[{_MINUS}]?\s?\\?[$\u20ac\u00a3]?\s?(?P<whole>[0-9]{{1,9}})"
    r"(?:(?:[ \t~]|\\[,;:! ])*\\[dtc]?frac\s?\{\s?(?P<above>[0-9]{1,9})\s?\}\s?\{\s?(?P<below>[0-9]{1,9})\s?\}"
    r"|[ \t]+(?P<numerator>[0-9]{1,9})/(?P<denominator>[0-9]{1,9})))(?P<unit>[^0-9/^]*)"
)


def read_number(answer: str) -> float | None:
    """The gold answer as a float, None if it is not one number and its currency or percent sign.

    Example:
      >>> read_number("$1,200.50"), read_number("3/4"), read_number("2 1/2"), read_number("about 3")
      (1200.5, 0.75, 2.5, None)
    """
    text = answer.strip().removesuffix(".").rstrip()
    text = text.strip("$").removesuffix("%").rstrip(" \\")
    if (mixed := _mixed(text)) and mixed[1] == text:
        return mixed[0]
    found = _NUMBER.fullmatch(text)
    return None if found is None else _value(found)


def _mixed(text: str) -> tuple[float, str] | None:
    """The value of a mixed number that, but for a unit, is all of a text, and how it is written; None if it is none."""
    found = _MIXED.fullmatch(text.strip(" \n$*_"))
    if found is None:
        return None
    above, below = int(found["above"] or found["numerator"]), int(found["below"] or found["denominator"])
    if above >= below:
        return None
    value = int(found["whole"]) + above / below
    return -value if found["number"][:1] in _MINUS else value, found["number"]


def _value(found: re.Match) -> float | None:
    """The number of a match, None if no float can be as large or it is divided by 0."""

    def digits(part: str) -> float:
        return float(re.sub(r"[^0-9.]", "", part))

    divisor, power = found["below"] or found["divisor"], found["power"] or found["exponent"]
    try:
        value = digits(found["above"] or found["value"]) / (digits(divisor) if divisor else 1.0)
        value *= 10.0 ** int(power.translate(str.maketrans(dict.fromkeys(_MINUS, "-")))) if power else 1.0
    except (ZeroDivisionError, OverflowError):
        return None
    if not math.isfinite(value):
        return None
    return -value if found.group().lstrip()[:1] in _MINUS else value


def _last_number(text: str) -> re.Match | None:
    last = None
    for found in _NUMBER.finditer(text):
        last = found
    return last


_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{[^{}]*\}(?:\s*\^\s*(?:\{[^{}]*\}|\S))?")
_SIGNED_ABOVE = re.compile(rf"(\\[dtc]?frac\s?\{{)\s?([{_MINUS}])")
_MORE = re.compile(r"[0-9]\s*\\[dtc]?frac|\^")


def _in_box(text: str) -> re.Match | None:
    """The last number of a box, but for its unit; none where it is part of what is more than a number, such as 2^3."""
    text = _SIGNED_ABOVE.sub(r"\2\1", _TEXT.sub(" ", text))
    last = _last_number(text)
    return None if last is None or _MORE.search(text) and not last.group("power") else last


def numeric(response: str, answer: str, *, tolerance: float = 1e-6) -> Compared:
    """Compares the last number of the last box; else the first after the last "answer is" or "####"; else the last.

    A mixed number, "2 1/2", is read where it is all of the box, of what is said, or of the response, but for its unit.
    """
    gold = read_number(answer)
    if gold is None:
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    box, stated = boxed(response), said(response)
    if box is not None and not re.search("[0-9]", box):
        box = None
    # As below, what follows the last "=".
    if mixed := _mixed((stated or response if box is None else _TEXT.sub(" ", box)).rpartition("=")[2]):
        value, extracted = mixed
        return _close(value, gold, extracted, tolerance)
    if box is not None:
        last = _in_box(box)
    else:
        last = stated and _NUMBER.search(stated.rpartition("=")[2]) or _last_number(response)
    if last is None:
        return 0.0, None, "no answer found"
    return _close(_value(last), gold, last.group().strip()[:200], tolerance)


def _close(value: float | None, gold: float, extracted: str, tolerance: float) -> Compared:
    equal = value is not None and math.isclose(value, gold, rel_tol=tolerance)
    return float(equal), extracted, "equal" if equal else "not equal"


# --- choice -------------------------------------------------------------------------------------------------------

_WRAPPED = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mathsf|textrm|bf|rm)\s*\{([^{}]*)\}|[*_$`~\\]")
_OPTION = r"(?:(?i:option|choice|answer)\s+)?"
# One letter, in brackets or not, alone or before the option's own text: "B", "(b)", "B.", "[C]", "D) 42", "Option B".
_ALONE = re.compile(rf"\s*{_OPTION}[\(\[]?\s*([A-Ja-j])\s*[\)\]]?\s*[.:]?\s*")
_FIRST = re.compile(rf"\s*{_OPTION}(?:[\(\[]\s*([A-Ja-j])\s*[\)\]]|([A-J])(?:[).:,;]|\s*$|\s+(?=[-=(])))")
# "A" and "I" are words, too: before a common word, they are no letter of an option.
_END = r"(?![\w'\u2019-])"
_LETTER = rf"(?:[\(\[]\s*([A-Ja-j])\s*[\)\]]|([B-HJ]){_END}|([AI]){_END}(?!\s+(?!because|since|as|and|or)[a-z]))"
_AFTER_SAID = re.compile(rf"\W*{_OPTION}{_LETTER}")
_ANOTHER = re.compile(r"[\s\)\]]*(?:,|/|;|&|\bor\b|\band\b)[\s\(\[]*(?:or\s+|and\s+)?[A-J](?![\w'\u2019-])")
_BRACKETED = re.compile(r"[\(\[]\s*([A-J])\s*[\)\]]")


def _plain(text: str) -> str:
    r"""Text without emphasis, font commands and superfluous spaces: `**(B)**` and `\text{(B)}` are `(B)`."""
    lines = _WRAPPED.sub(lambda found: found[1] or "", text).splitlines()
    return "\n".join(" ".join(line.split()) for line in lines if line.strip())


def read_choice(answer: str) -> str | None:
    r"""The letter of a gold answer, None if it is not one: `B`, `(b)`, `\text{B}`, `B. Paris`."""
    return _choice_at(_plain(answer))


def _choice_at(text: str) -> str | None:
    """The one letter that a text begins with."""
    found = _ALONE.fullmatch(text) or _FIRST.match(text)
    return None if found is None or _ANOTHER.match(text, found.end() - 1) else _letter(found)


def _letter(found: re.Match) -> str:
    return next(group for group in found.groups() if group).upper()


def _choice_in(response: str) -> str | None:
    """The letter that a response chooses, None if it chooses none or several."""
    box = boxed(response)
    if box is not None:
        content = _plain(box)
        if (letter := _choice_at(content)) or len(set(re.findall(r"\b[A-J]\b", content))) > 1:
            return letter
    text = _plain(response)
    last = None
    for found in _SAID.finditer(text):
        last = _AFTER_SAID.match(text, found.end()) or last
    if last is not None:
        return None if _ANOTHER.match(text, last.end()) else _letter(last)
    if not text:
        return None
    lines = text.split("\n")
    if letter := _choice_at(lines[-1]):
        return letter
    bracketed = set(_BRACKETED.findall(lines[-1]))
    if bracketed:
        return bracketed.pop() if len(bracketed) == 1 else None
    return _choice_at(lines[0])


def choice(response: str, answer: str) -> Compared:
    """Compares the letter of the last box; else after the last "answer is"; else of the last line."""
    gold = read_choice(answer)
    if gold is None:
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    letter = _choice_in(response)
    if letter is None:
        return 0.0, None, "no answer found, or several"
    return float(letter == gold), letter, "equal" if letter == gold else "not equal"


READABLE: dict[str, Callable[[str], bool]] = {
    "exact": has_text,
    "trace": has_text,
    "numeric": lambda answer: read_number(answer) is not None,
    "choice": lambda answer: read_choice(answer) is not None,
}
COMPARE: dict[str, Callable[[str, str], Compared]] = {
    "exact": exact,
    "trace": trace,
    "numeric": numeric,
    "choice": choice,
}
