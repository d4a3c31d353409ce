r"""Kind `choice`: one letter, A to J.

It stands in the last box; else the last statement names it ("The answer is B", "option C is correct", "I choose D",
`{"answer": "C"}`, and labels of other languages); else it begins the last line, or the first. A statement that names
two letters names none; one that is denied ("The answer is not B", "option B is wrong") is no statement.
"""

import re

from cgrpo_jax.rewards.answers import Compared, boxed
from cgrpo_jax.rewards.choice_statements import DENYING, is_rejected, last_statement, names_another
from cgrpo_jax.rewards.number_text import FULL_WIDTH

# Scripts without spaces between words: a letter beside them is one by itself.
_HAN = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_BORDER = re.compile(f"(?<=[{_HAN}])(?=[A-Za-z(])|(?<=[A-Za-z)])(?=[{_HAN}])")
_SIGNS = FULL_WIDTH | dict(zip(map(ord, "\u3010\u3011\u3014\u3015\u3001\u3002\u2019\u2018"), "[](),.''", strict=True))
_SIGNS |= dict.fromkeys(map(ord, "\u201c\u201d\u201e\u300c\u300d\u300e\u300f\xab\xbb"), '"')
_SIGNS |= dict.fromkeys(map(ord, "\u200b\u2060\ufeff"))
_SIGNS |= {
    first + i: f"({chr(65 + i)})" for first in (0x24B6, 0x24D0, 0x249C, 0x1F110, 0x1F150, 0x1F170) for i in range(10)
}
_FONT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|sf|it|tt)|[mh]box|operatorname|boldsymbol|bm|underline|emph|bf|rm)"
    r"\s*\{([^{}]*)\}"
)
_MARKUP = re.compile(r"[*$`~\\]|(?<![^\W_])_+|_+(?![^\W_])")
_OPTION = (
    "(?:(?i:option|choice|answer|antwort|réponse|respuesta|resposta|risposta|opción|opção|opzione|alternativa|letra|选项|選項|答案)"
    r"\s+)?"
)
# One letter, in brackets or not, alone or before the option's own text: "B", "(b)", "B.", "[C]", "D) 42", "Option B".
_ALONE = re.compile(rf"\s*{_OPTION}[\(\[<]?\s*([A-Ja-j])\s*[\)\]>]?\s*[.:]?\s*[✓✔✅\ufe0f]{{0,2}}")
_FIRST = re.compile(rf"\s*{_OPTION}(?:[\(\[]\s*([A-Ja-j])\s*[\)\]]|([A-J])(?:[).:,;]|\s*$|\s+(?=[-=(])))")
_BRACKETED = re.compile(r"(?<!\w)[\(\[]\s*([A-J])\s*[\)\]]")
_BULLET = re.compile(r"[^\w\s(\[]{1,3} (?=\S)")


def plain(text: str) -> str:
    r"""Text without emphasis, font commands and superfluous spaces: `**(B)**` and `\text{(B)}` are `(B)`."""
    text = text.translate(_SIGNS)
    for _ in range(2):
        text = _FONT.sub(r"\1", text)
    lines = (" ".join(line.split()) for line in _MARKUP.sub("", text).splitlines())
    return _BORDER.sub(" ", "\n".join(filter(None, lines)))


def read_choice(answer: str) -> str | None:
    r"""The letter of a gold answer, None if it is not one: `B`, `(b)`, `\text{B}`, `B. Paris`."""
    return _letter_at(plain(answer))


def _letter_at(text: str) -> str | None:
    """The one letter that a text begins with, None if there is none, another too, or it is denied."""
    found = _ALONE.fullmatch(text) or _FIRST.match(text)
    if found is None:
        return None
    end = found.end(found.lastindex or 0)
    return None if names_another(text, end) or is_rejected(text, end) else found[found.lastindex or 0].upper()


def _letter_in(response: str) -> str | None:
    """The letter that a response chooses, None if it chooses none or several."""
    box = boxed(response)
    if box is not None:
        content = plain(box)
        if (letter := _letter_at(content)) or len(set(re.findall(r"\b[A-J]\b", content))) > 1:
            return letter
    text = plain(response)
    lines = [_BULLET.sub("", line, count=1) if _BULLET.match(line) else line for line in (text.split("\n") or [""])]
    statement, alone = last_statement(text), _ALONE.fullmatch(lines[-1])
    if statement is not None and not (statement.weak and alone):
        return statement.letter
    if letter := _letter_at(lines[-1]):
        return letter
    bracketed = set(_BRACKETED.findall(lines[-1]))
    if bracketed:
        return bracketed.pop() if len(bracketed) == 1 and not DENYING.search(lines[-1]) else None
    return _letter_at(lines[0])


def choice(response: str, answer: str) -> Compared:
    """Compares the letter of the last box; else of the last statement; else of the last line, or the first."""
    gold = read_choice(answer)
    if gold is None:
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    letter = _letter_in(response)
    if letter is None:
        return 0.0, None, "no answer found, or several"
    return float(letter == gold), letter, "equal" if letter == gold else "not equal"
