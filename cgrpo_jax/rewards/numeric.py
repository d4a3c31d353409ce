r"""Kind `numeric`: a number, within a relative tolerance.

It stands in the last box; else behind the last "answer is" or "####"; else it is the last of the response. A number
that is part of an expression, such as those of `\sqrt{16}`, `3\pi` and `(3, 5)`, is none; a side of an equation may be
one: the last if that is a number, as in `x = 5`, else the first, as in `20 = 5 \times 4` and `5 = x`.
"""

import dataclasses
import math
import re
from collections.abc import Sequence

from cgrpo_jax.rewards.answers import Compared, boxed, said
from cgrpo_jax.rewards.number_text import CURRENCY, NUMBER, UPRIGHT, has_decimal_comma, tidy, value_of

_LONGEST = 2000  # characters of a sentence that says what the answer is
_NEAR = 200  # characters before a number that are looked at
_UNIT_POWER = r"(?: ?\^ ?(?:\{ ?-?[0-9]{1,2} ?\}|-?[0-9](?![0-9])))?"
_TOKEN = re.compile(
    rf"(?P<number>{NUMBER.pattern})"
    rf"|(?P<word>(?:[^\W\d_]+(?:['-][^\W\d_]+)*|{UPRIGHT}|[\xb0\u2103\u2109](?: ?[CFK](?![^\W\d_]))?){_UNIT_POWER})"
    rf"|(?P<space>\s+)|(?P<mark>[{CURRENCY}%\u2030.,;:?#\"'`{{}}])|(?P<bracket>[()])"
    r"|(?P<operator>\\[A-Za-z]+|[\s\S])"
)
_ARITHMETIC = {*"+-*/^!\xd7\xb7\xf7\u221a", r"\frac", r"\sqrt"}
_HARMLESS = {r"\ldots", r"\dots", "\u2026", r"\therefore", "\u2234", r"\Rightarrow", "\u2192", r"\bf", r"\rm"}
_HARMLESS |= {r"\large", r"\Large", r"\huge", "\u201c", "\u201d", "\u3002"}
_MARKUP = _HARMLESS | {"*", "_", ">", "|", "-"}  # in a sentence
# Words that make a number part of more than a number: "log 8", "3 pi", "5 mod 7", "half of 16".
_OPERATING = set("plus minus times over divided multiplied mod".split())
_MATHS = _OPERATING | set(
    "sqrt root log lg ln exp sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh pi tau gcd lcm max min abs "
    "floor ceil squared cubed half twice double infinity".split()
)
_TIMES = {"min", "sec"}  # behind a number they are units
_VARIABLES = set("abcnxyz")  # a product of such letters is no unit
_SCALES = {"hundred": 1e2, "thousand": 1e3, "million": 1e6, "billion": 1e9, "trillion": 1e12}
_GLUED_UNITS = set("mslghLNJWV")  # single letters that stand for no variable right behind a number
_UNITS = _GLUED_UNITS | set("AKCFT\u03a9\u03bc\xb5")
_ARTICLES = set("aAI")
_JOINING = set("or and to und oder et ou y o bis".split())
# Behind these words, or in a remark in brackets, a sentence gives reasons.
_REASON = re.compile(r"\b(?:because|since|as|where|which|given)\b| \([^\W\d_]{2}", re.IGNORECASE)
_EQUALS = re.compile("[=\u2248]")


@dataclasses.dataclass(frozen=True)
class _Token:
    """A piece of a text; its kind is the name of its group in `_TOKEN`."""

    kind: str
    text: str
    spaced: bool  # a space comes before it
    found: re.Match

    @property
    def word(self) -> str:
        return self.text.partition("^")[0].strip() if self.kind == "word" else ""

    @property
    def is_letter(self) -> bool:
        """Is it a single letter, which may be a variable? A sign of a script without capitals is a word."""
        return len(self.word) == 1 and self.word.lower() != self.word.upper()


@dataclasses.dataclass(frozen=True)
class _Reading:
    """A number as it is written; its value is None if it has none, such as 5/0."""

    value: float | None
    text: str


def _tokens(text: str) -> list[_Token]:
    tokens, spaced = [], False
    for found in _TOKEN.finditer(text):
        kind = found.lastgroup or ""
        if kind != "space":
            tokens.append(_Token(kind, found.group(), spaced, found))
        spaced = kind == "space"
    return tokens


def _reading(tokens: Sequence[_Token], at: int) -> _Reading:
    value, text = value_of(tokens[at].found), tokens[at].text
    if at + 1 < len(tokens) and (scale := _SCALES.get(tokens[at + 1].word.lower())):
        return _Reading(None if value is None else value * scale, f"{text} {tokens[at + 1].word}")
    return _Reading(value, text)


# --- a number alone: boxes ----------------------------------------------------------------------------------------


def _alone(tokens: Sequence[_Token]) -> _Reading | None:
    """The number that a text is, but for its currency, its unit and words; None if it is more, or holds none."""
    numbers = [at for at, token in enumerate(tokens) if token.kind == "number"]
    if len(numbers) != 1:
        return None
    at = numbers[0]
    if "," in tokens[at].text and any(token.text == "(" for token in tokens[:at]):
        return None  # "(3,5)"
    beside = (_is_beside(tokens, other, at) for other in range(len(tokens)) if other != at)
    return _reading(tokens, at) if all(beside) else None


def _is_beside(tokens: Sequence[_Token], at: int, number: int) -> bool:
    """Is a token no part of an expression that the number is in?"""
    token, before = tokens[at], tokens[at - 1] if at else None
    behind = tokens[at + 1] if at + 1 < len(tokens) else None
    if token.kind == "word":
        if not token.is_letter:
            return not (_is_maths(token) if at > number else token.word.lower() in _MATHS)
        if at < number:  # "A: 5", "a total of 5"
            return behind is not None and (behind.text == ":" or token.word in _ARTICLES and behind.kind == "word")
        return token.word in (_UNITS if token.spaced or at > number + 1 else _GLUED_UNITS)
    if token.text == "(":  # "5(3)", "f(5)"
        return token.spaced or before is None or before.kind not in ("number", "word") and before.text not in (")", "}")
    if token.kind != "operator" or token.text in _HARMLESS:
        return True
    if at < number or behind is None:
        return False
    if token.text == r"\frac":  # m/s
        return not any(other.kind == "operator" or other.is_letter for other in tokens[at + 1 :])
    # "km/h", "$5/hour", "N*m"
    unit = behind.kind == "word" and (not behind.is_letter or before is not None and before.kind == "word")
    return unit and (token.text == "/" or token.text in "*\xb7" and before is not None and before.kind == "word")


def _is_maths(token: _Token) -> bool:
    """Does a word behind a number work on it, or multiply it?"""
    product = not token.spaced and len(token.word) <= 3 and _VARIABLES.issuperset(token.word)
    return token.kind == "word" and (product or token.word.lower() in _MATHS - _TIMES)


def _is_several(sides: Sequence[Sequence[_Token]]) -> bool:
    """Are they the sides of more than one equation, as in "x = 2, y = 3" and "x = 2 or x = 3"?"""
    return any(
        len(side) > 2 and side[-1].kind == "word" and (side[-2].text in ",;" or side[-2].word.lower() in _JOINING)
        for side in sides[1:-1]
    )


def _of_box(text: str) -> _Reading | None:
    sides = [_tokens(side) for side in _EQUALS.split(text)]
    if _is_several(sides) or any(token.text in "<>\u2264\u2265\u2260" for side in sides for token in side):
        return None
    return _alone(sides[-1]) or (_alone(sides[0]) if all(map(_is_plain, sides[1:])) else None)


def _is_plain(side: Sequence[_Token]) -> bool:
    """Is a side of an equation a name, or arithmetic without a variable?"""
    operators = {token.text for token in side if token.kind == "operator"}
    has_letter = any(token.is_letter for token in side)
    return operators <= _ARITHMETIC and not (has_letter and (operators or any(t.kind == "number" for t in side)))


# --- the first number of a sentence, the last of a text -----------------------------------------------------------


def _of_sentence(text: str) -> _Reading | None:
    """The number that a sentence says, as in "16 - 3 = 13" and "12 apples for 3 people"."""
    if (reason := _REASON.search(text)) and (early := _of_equation(text[: reason.start()])):
        return early
    return _of_equation(text)


def _of_equation(text: str) -> _Reading | None:
    sides = [_tokens(side) for side in _EQUALS.split(text)]
    if _is_several(sides):
        return None
    return _first(sides[-1]) or (_first(sides[0]) if all(map(_is_plain, sides[1:])) else None)


def _first(tokens: Sequence[_Token]) -> _Reading | None:
    """The first number, None if it is part of an expression or one of several."""
    at = next((at for at, token in enumerate(tokens) if token.kind == "number"), None)
    if at is None:
        return None
    for token in tokens[:at]:
        if token.kind == "operator" and token.text not in _MARKUP or token.word.lower() in _MATHS:
            return None
        if token.is_letter and token.word not in _ARTICLES:
            return None
    if "," in tokens[at].text and any(token.text == "(" for token in tokens[:at]):
        return None
    behind = [token for token in tokens[at + 1 :] if token.kind != "mark"][:2]
    return None if _goes_on(*behind) else _reading(tokens, at)


def _goes_on(token: _Token | None = None, then: _Token | None = None) -> bool:
    """Do the tokens behind a number make it part of an expression, or one of several numbers?"""
    if token is None:
        return False
    operand = then is not None and (then.kind == "number" or then.is_letter or then.text.startswith(("\\", "(")))
    if token.kind == "operator":
        return token.text not in _MARKUP | {"/", "+"} or operand and token.text not in _HARMLESS
    if token.is_letter:
        return token.word not in (_UNITS | _ARTICLES if token.spaced else _GLUED_UNITS)
    word = token.word.lower()
    if word in _OPERATING or word in _JOINING:
        return operand
    return token.kind == "number" or _is_maths(token) or token.text == "(" and not token.spaced


_PART_OF = re.compile(
    r"(?:\\frac ?(?:\{[^{}]*\} ?)?|\\sqrt ?(?:\[[^][{}]*\] ?)?)\{[^{}]*$|(?:\\sqrt|\u221a|\bsqrt) ?[({]?$"
    r"|(?:\\(?:log|lg|ln|sin|cos|tan)|\b(?:log|ln|sin|cos|tan))(?:_(?:\{[^{}]*\}|\w))? ?[({]?$|[\^_] ?\{?$"
    r"|(?:^|[\s$(])[A-Za-z] ?[<>] ?$|[\u2264\u2265\u2260] ?$"
)
_POWER_OF_UNIT = re.compile(rf"[0-9] ?(?:/?(?:[^\W\d_]{{2,}}|{UPRIGHT}|[mshgl]) ?)+\^ ?\{{?-?$")
_GOES_ON = re.compile(r" ?(?:\^|_|\u03c0|\\sqrt|\u221a|\\frac)|!\S")


def _last(text: str) -> _Reading | None:
    """The last number of a text, None if it is part of an expression. A sum or product is one, but for its result."""
    last = None
    for found in NUMBER.finditer(text):
        if "^" in text[max(0, found.start() - 3) : found.start()]:
            if _POWER_OF_UNIT.search(text[max(0, found.start() - 30) : found.start()]):
                continue
        last = found
    if last is None:
        return None
    before = text[max(text.rfind("\n", 0, last.start()) + 1, last.start() - _NEAR) : last.start()]
    if _PART_OF.search(before) or _GOES_ON.match(text, last.end()):
        return None
    sides = _EQUALS.split(before + last.group())
    if len(sides) > 1 and _is_worked(_tokens(sides[-1])):  # "20 = 5 * 4"
        left = _tokens(sides[-2])
        if left and left[-1].kind == "number" and (len(left) == 1 or left[-2].kind == "word"):
            return _reading(left, len(left) - 1)
    return _reading([*_tokens(last.group()), *_tokens(text[last.end() : last.end() + 20])], 0)


def _is_worked(tokens: Sequence[_Token]) -> bool:
    kinds = [token.kind for token in tokens if token.text != "$"]
    signs = {token.text for token in tokens if token.kind == "operator"}
    return len(kinds) > 2 and kinds == ["number", "operator"] * (len(kinds) // 2) + ["number"] and signs <= _ARITHMETIC


# --- comparison ---------------------------------------------------------------------------------------------------


def read_number(answer: str) -> float | None:
    """The gold answer as a float, None if it is not one number and its currency or percent sign.

    A lone decimal comma, "1,5", may stand between two numbers: it is refused.

    Example:
      >>> read_number("$1,200.50"), read_number("3/4"), read_number("2 1/2"), read_number("about 3")
      (1200.5, 0.75, 2.5, None)
    """
    text = tidy(answer).strip().removesuffix(".").rstrip()
    found = NUMBER.fullmatch(text.strip(f" {CURRENCY}").removesuffix("%").rstrip(f" {CURRENCY}"))
    return None if found is None or has_decimal_comma(found) else value_of(found)


def numeric(response: str, answer: str, *, tolerance: float = 1e-6) -> Compared:
    """Compares the number of the last box; else the first behind the last "answer is" or "####"; else the last."""
    gold = read_number(answer)
    if gold is None:
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    box, stated = tidy(boxed(response) or ""), tidy((said(response) or "")[:_LONGEST])
    if re.search("[0-9]", box):
        reading = _of_box(box.strip(" *_"))
    elif NUMBER.search(stated):
        reading = _of_sentence(stated)
    else:
        reading = _last(tidy(response))
    if reading is None:
        return 0.0, None, "no answer found"
    equal = reading.value is not None and math.isclose(reading.value, gold, rel_tol=tolerance)
    return float(equal), reading.text.strip()[:200], "equal" if equal else "not equal"
