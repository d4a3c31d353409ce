"""Final answers: where a response has one, and the kinds that compare text.

  - `exact`: a line, up to whitespace.
  - `trace`: everything after the last "Answer:", up to whitespace.

All of it takes time linear in the response, so it may run beside the training loop.
"""

import dataclasses
import re

from cgrpo_jax.runtime import text as text_lib

MAX_ANSWER_CHARS = 1000  # no gold answer is near this long
_MAX_GAP = 40  # characters between boxes that are one answer

Compared = tuple[float, str | None, str]  # the score, extracted and reason of a `Grade`

_BOX = r"\\(?:f?boxed|fbox)\s*\{"
_BOX_OR_BRACE = re.compile(_BOX + r"|\\[{}]|[{}]")
_BETWEEN_BOXES = re.compile(r"[\s$.]*(?:,|,?\s*\band\b|,?\s*\bor\b)[\s$]*")
_ANSWER = "Answer:"
# "The answer is", "**Answer:**", `"answer":`, <answer>, "The correct option is", "Antwort:", and GSM8K's "####".
_SAID = re.compile(
    r"(?i:(?<![^\W_])(?<!/)answers?\b(?:\s+(?:is|are|was|=)\b|\s*+(?:[*_]++\s*+)?[\"'\]]?\s*+[:=\uff1a]|>)"
    r"|\bcorrect\s+(?:option|choice)\s+is\b|\b(?:antwort|lösung|réponse|respuesta|resposta|risposta|ответ)"
    r"(?:\s+(?:est|ist|es|è|é|lautet)\b|\s*+(?:[*_]++\s*+)?[:=])|(?:答案|答え|正解|정답)\s*+(?:[:\uff1a=]|是|为|為|は|은))|####"
)
_SENTENCE = re.compile(r"\s*[^\n]*?(?=\n|$|[.!?](?:\s|$)|</)")


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
    contents = [content]
    while spans and first - spans[-1][1] <= _MAX_GAP and _BETWEEN_BOXES.fullmatch(text, spans[-1][1], first):
        first, _, content = spans.pop()
        contents.append(content)
    return ", ".join(reversed(contents)).strip()


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
    """What follows the last "answer is", "answer:" or "####", to the end of its sentence; None if there is none."""
    last = None
    for found in _SAID.finditer(text):
        last = found
    sentence = None if last is None else _SENTENCE.match(text, last.end())
    return None if sentence is None else sentence.group().strip().strip(" *_:$")


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
