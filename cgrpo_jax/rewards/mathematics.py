"""Grading of mathematical answers with math-verify, run only inside worker processes.

math-verify and SymPy can hang or eat all memory on what a model writes, so the trainer never calls this module's
functions itself: `grader.Grader` runs them in processes that it can kill. Nothing heavy is imported at the top.
"""

import functools
import math
import re
import sys

from cgrpo_jax.rewards import answers

TAIL_CHARS = 4000  # without a box only the end is searched: math-verify's patterns are slower than linear
_KEPT = 4096  # parsed gold answers, and verdicts on pairs of final answers, that a worker remembers

# Whole numbers in plain digits. math-verify compares these as integers, exactly.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")

# Answers that math-verify reads, known without asking it: most of every data set.
_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]{1,30})(?:\.[0-9]{1,30})?"
_FRACTION = r"(?:\\[dt]?frac\{[0-9]{1,9}\}\{[1-9][0-9]{0,8}\}|[0-9]{1,9}/[1-9][0-9]{0,8})"
_RADICAL = r"(?:[0-9]{0,9}\\(?:sqrt\{[0-9]{1,9}\}|pi))"
_INTEGERS = r"\( ?-?[0-9]{1,15}(?:, ?-?[0-9]{1,15}){1,5} ?\)"
_SURE = re.compile(
    rf"\$?(?:-?(?:\\\$)?(?:{_DECIMAL}|{_FRACTION}|{_RADICAL})(?:\\?%|\^\\circ|\^\{{\\circ\}})?|[a-zA-Z]|{_INTEGERS})\$?"
)


def surely_readable(answer):
    """Is `answer` of a form that math-verify always reads? False says nothing. No parser runs, so anyone may ask."""
    return _SURE.fullmatch(answer.strip()) is not None or bool(words(answer))


def start(memory_limit):
    """Initialises a worker: imports math-verify before the first time limit runs, and limits the address space."""
    import logging

    import math_verify  # noqa: F401

    logging.getLogger("math_verify").setLevel(logging.CRITICAL)  # it warns that its own time limits are off
    if memory_limit and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))


def parse(text):
    """math-verify's reading of `text`: SymPy expressions, then the string that they came from; empty if none."""
    import math_verify

    # The pool enforces the time limit: math-verify's own rests on SIGALRM, which compiled code can ignore.
    return math_verify.parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]  (None: none)


def readable(answer):
    """Does math-verify read the gold answer as mathematics, rather than keep it as a string?"""
    if not answer.strip() or len(answer) > answers.MAX_ANSWER_CHARS:
        return False
    if _INTEGER.fullmatch(answer) or words(answer):
        return True
    return any(not isinstance(value, str) for value in _parse_gold(answer))


@functools.lru_cache(_KEPT)
def _parse_gold(answer):
    return parse(f"\\boxed{{{as_latex(answer)}}}")


def grade(response, answer):
    """Compares the final answer of `response` with `answer`.

    Returns:
      `(score, extracted, reason)`, see `rewards.Grade`.
    """
    if not readable(answer):
        return 0.0, None, f"gold answer {answer[:80]!r} can't be read"
    try:
        return _grade(response, answer)
    except (MemoryError, RecursionError):  # as one that takes too long, it is the response's own doing
        return 0.0, None, "the response is too large to be read"


def _grade(text, answer):
    box = answers.boxed(text)
    if box is not None:
        return _grade_box(box, answer)
    if answers.breaks_off(text):
        return 0.0, None, "the response breaks off within its box"
    if words(answer) and (final := answers.said(text)):
        return _grade_box(final, answer)
    predicted = parse(as_latex(text[-TAIL_CHARS:]))
    if not predicted:
        return 0.0, None, "no answer found"
    return _graded(_verify(answer, predicted), str(predicted[-1]))


@functools.lru_cache(_KEPT)
def _grade_box(box, answer):
    """Compares the content of a box with a gold answer that can be read."""
    # Two short cuts, with the verdicts of math-verify: equal strings are equal to it, and so are equal integers only.
    if box == answer or (_INTEGER.fullmatch(box) and _INTEGER.fullmatch(answer)):
        return _graded(box == answer, box)
    if (gold := _BASED.fullmatch(answer)) and (own := _BASED.fullmatch(box)):
        values = [_value_in_base(*found.groups()) for found in (gold, own)]
        return _graded(values[0] is not None and values[0] == values[1], box)
    gold_words = words(answer)
    if gold_words is not None:
        equal = gold_words == (words(box, gold=False) or "")
        if equal or not re.search("[0-9]", gold_words):
            return _graded(equal, box)
    predicted = parse(f"\\boxed{{{as_latex(box)}}}")
    if not predicted:
        return 0.0, box[:200], "no answer found"
    return _graded(_verify(answer, predicted), box)


def _verify(answer, predicted):
    import math_verify

    gold = _parse_gold(answer)
    return math_verify.verify(gold, predicted, float_rounding=_decimals(gold), timeout_seconds=None)


def _decimals(gold):
    """To how many decimals floats are rounded: math-verify's 6, or 6 digits of a gold answer below a thousandth."""
    import sympy

    value = abs(float(gold[0])) if gold and isinstance(gold[0], sympy.Number) and gold[0].is_finite else 1.0
    return 6 if not 0 < value < 1e-3 else 5 - math.floor(math.log10(value))


def _graded(equal, extracted):
    return float(equal), extracted[:200], "equal" if equal else "not equal"


# --- what math-verify would judge otherwise than a person -----------------------------------------------------------

_FONT = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}"
_IN_FONT = re.compile(_FONT)
_LAYOUT = re.compile(r"\\(?:displaystyle|textstyle|left|right|quad)(?![a-zA-Z])|\\[,;:! ]|[{}$~]")
_WORD = re.compile("[A-Za-z]{4,}")
_SIGNS = str.maketrans(
    {
        "\u2212": "-", "\u2013": "-", "\u00d7": r"\times ", "\u00b7": r"\cdot ", "\u00f7": "/", "\u03c0": r"\pi ",
        "\u221e": r"\infty ", "\u2264": r"\le ", "\u2265": r"\ge ", "\u00b1": r"\pm ", "\u222a": r"\cup ",
        "\u2229": r"\cap ", "\u2208": r"\in ", "\u00b0": r"^\circ ", "\u00b2": "^2", "\u00b3": "^3", "\u00a0": " ",
        "\u00bd": r"\frac{1}{2}", "\u00bc": r"\frac{1}{4}", "\u00be": r"\frac{3}{4}", "\u2153": r"\frac{1}{3}",
        "\u2154": r"\frac{2}{3}", "\u03b8": r"\theta ", "\u211d": r"\mathbb{R}", "\u2205": r"\emptyset ",
        "\u20ac": "", "\u00a3": "", "\u00a5": "", "\u20b9": "",
    }
)  # fmt: skip
_THIN_SPACE = re.compile(r"(?<=[0-9])\\[,;:! ](?=[0-9]{3}(?![0-9]))")
_FULL_STOP = re.compile(r"(?<=[0-9}a-z])\.$")
_BASED = re.compile(r"\s*([0-9A-Za-z]{1,30})_\{?([0-9]{1,2})\}?\s*")
_REPEATING = re.compile(r"([0-9]{1,15})\.([0-9]{0,15})\\overline\s*\{([0-9]{1,15})\}")
_ROOT = re.compile("\u221a\\s*(?:\\(([^()]*)\\)|\\{([^{}]*)\\}|([0-9.]+|[a-z]))")


def as_latex(text):
    r"""A final answer as math-verify reads it.

    Mathematical signs of Unicode, which it leaves out or takes for letters, become LaTeX; spaces between thousands, a
    full stop at the end and currencies other than the dollar go; repeating decimals become fractions.

    Example:
      >>> as_latex("\u221a2"), as_latex(r"10\,080."), as_latex(r"0.1\overline{6}")
      ('\\sqrt{2}', '10080', '\\frac{15}{90}')
    """
    text = _THIN_SPACE.sub("", text.strip())
    text = text[:-1] if _FULL_STOP.search(text) else text
    text = _REPEATING.sub(_fraction, text)
    if text.isascii():
        return text
    text = _ROOT.sub(lambda found: rf"\sqrt{{{next(group for group in found.groups() if group is not None)}}}", text)
    return text.translate(_SIGNS)


def _fraction(repeating):
    """A match of _REPEATING as a fraction: 0.1(6) is (16 - 1) / 90."""
    whole, first, period = repeating.groups()
    above = int(whole + first + period) - int(whole + first)
    return rf"\frac{{{above}}}{{{'9' * len(period) + '0' * len(first)}}}"


def _value_in_base(digits, base):
    """The value of a numeral such as 52_8, whose base math-verify leaves out; None if it has none."""
    try:
        return int(digits, int(base))
    except ValueError:
        return None


def words(answer, *, gold=True):
    """An answer that is text, as small letters without font, brackets and article; None if it is mathematics.

    math-verify takes letters for a product, so that an anagram is equal, and a name in another font is not.

    Example:
      >>> words(r"\\text{an Ellipse}"), words(r"(\\mathrm{C})", gold=False), words("2xy")
      ('ellipse', 'c', None)

    Args:
      answer: as in a box.
      gold: ask whether it is text: it is all in one text font, or a word of four letters at least. What is compared
        with such a one is text, too.
    """
    answer = answer.strip().strip("$").strip()
    if gold and not ((found := re.fullmatch(_FONT, answer)) and re.search("[A-Za-z]", found[1])):
        if not _WORD.fullmatch(answer) or answer == "infinity":
            return None
    plain = _LAYOUT.sub(" ", _IN_FONT.sub(r"\1", answer))
    plain = " ".join(plain.strip(" ().,$\"'").casefold().split())
    return re.sub("^(?:an?|the) ", "", plain)


def loaded_modules():
    """Names of the modules that this worker has imported."""
    return sorted(sys.modules)
