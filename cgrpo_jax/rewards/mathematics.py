"""Grading of mathematical answers with math-verify, run only inside worker processes.

math-verify and SymPy can hang or eat all memory on what a model writes, so the trainer never calls this module's
functions itself: `grader.Grader` runs them in processes that it can kill. Nothing heavy is imported at the top.
"""

import functools
import re
import sys

from cgrpo_jax.rewards import answers
from cgrpo_jax.rewards.formulas import (
    attempts,
    bounds,
    decimals,
    equality,
    latex_groups,
    long_sums,
    normalize,
    real_sets,
    unicode_signs,
    units,
)

TAIL_CHARS = 4000  # without a box only the end is searched: math-verify's patterns are slower than linear
_KEPT = 4096  # parsed gold answers, and verdicts on pairs of final answers, that a worker remembers

# Whole numbers in plain digits. math-verify compares these as integers, exactly.
_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,14}")

_E_NOTATION = re.compile(r"^-?[0-9.]{1,30}[eE][-+]?[0-9]{1,4}(?![0-9A-Za-z])")

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
    bounds.install()
    if memory_limit and sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (memory_limit, memory_limit))


def parse(text):
    """math-verify's reading of `text`: SymPy expressions, then the string that they came from; empty if none."""
    import math_verify

    attempts.begin()
    # The pool enforces the time limit: math-verify's own rests on SIGALRM, which compiled code can ignore.
    return math_verify.parse(text, parsing_timeout=None)  # pyright: ignore[reportArgumentType]  (None: none)


@functools.lru_cache(_KEPT)
def _read(latex):
    """The SymPy expression of an answer in normal form; None if the grammar has none, or it can't be compared."""
    return _expression(
        latex, lambda value, text: equality.with_real_roots(_with_imaginary_unit(long_sums.settled(value), text))
    )


@functools.lru_cache(_KEPT)
def _as_written(latex):
    """The SymPy expression of an answer in normal form as it is written: no sum in it is worked out."""
    return _expression(latex, lambda value, _: value)


def _expression(latex, finish):
    """What `finish(value, text)` makes of an answer's expression, or of the last side of an equation; else None."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig, latex2sympy, normalize_latex
    from math_verify.parser import get_last_eq

    if latex_groups.deepest(latex) > latex_groups.MOST_OPEN:
        return None
    plain = NormalizationConfig(basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="none")
    text = normalize_latex(latex, plain)
    for one in dict.fromkeys((text, get_last_eq(text))):
        try:
            return finish(latex2sympy(one, is_real=True, normalization_config=None), one)
        except (MemoryError, RecursionError):
            raise
        except Exception:  # noqa: BLE001, S112  (ANTLR's listeners raise plain exceptions)
            continue
    return None


def _with_imaginary_unit(value, text):
    """`i` is the imaginary unit, unless it counts the terms of a sum or stands in a word."""
    import sympy

    if "i" not in text or "ii" in text or not isinstance(value, sympy.Basic | sympy.MatrixBase):
        return value
    if value.has(sympy.Sum, sympy.Product, sympy.Interval):
        return value
    known = {sympy.Symbol("i", real=True): sympy.I}
    if isinstance(value, sympy.Eq):  # a letter is real, which a value need not be
        return sympy.Eq(value.lhs.xreplace(known), value.rhs.xreplace(known), evaluate=False)
    return value.xreplace(known)


def _normal(answer):
    """An answer's normal form, None if it would be read as something else."""
    try:
        return normalize.normalize(answer)
    except normalize.Unreadable:
        return None


def readable(answer):
    """Does math-verify read the gold answer as mathematics, rather than keep it as a string?"""
    if not answer.strip() or len(answer) > answers.MAX_ANSWER_CHARS:
        return False
    if _INTEGER.fullmatch(answer) or words(answer):
        return True
    latex = _normal(answer)
    if latex is None:
        return False
    return _read(latex) is not None or real_sets.is_set(latex, _read) or _as_written(latex) is not None


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
    except ArithmeticError:
        return 0.0, None, "the answer has no value"


def _grade(text, answer):
    box = answers.boxed(text)
    if box is not None:
        return _grade_box(box, answer)
    if answers.breaks_off(text):
        return 0.0, None, "the response breaks off within its box"
    final = answers.said(text)
    if final and (words(answer) or _E_NOTATION.search(final)):
        return _grade_box(final, answer)
    predicted = parse(_formulas_normal(text[-TAIL_CHARS:]))
    if not predicted:
        return 0.0, None, "no answer found"
    graded = _compared(answer, str(predicted[-1]))  # what it found, as text
    if graded[0] or len(predicted) == 1:
        return graded
    gold = _read(normalize.normalize(answer))
    equal = gold is not None and any(_verify(gold, value) for value in predicted if not isinstance(value, str))
    return _graded(equal, str(predicted[-1]))


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
            return _graded(equal or _same_set(answer, box), box)
    return _compared(answer, box)


def _compared(answer, box):
    gold, own = _normal(answer), _normal(box)
    if gold is None or own is None:
        return 0.0, box[:200], "no answer found"
    if gold == own:
        return _graded(True, box)
    first, second = decimals.number(gold), decimals.number(own)
    if first is not None and second is not None:
        return _graded(decimals.equal(first, second), box)
    gold, own = _with_same_units(gold, own, answer, box)
    if real_sets.may_be(gold) or real_sets.may_be(own):
        decided = real_sets.equal(gold, own, _read)
        if decided is not None:
            return _graded(decided, box)
    values = _read(gold), _read(own)
    if None not in values:
        return _graded(_verify(*values), box)
    written = _as_written(gold), _as_written(own)
    if values[1] is None and written[1] is None:
        return 0.0, box[:200], "no answer found"
    return _graded(None not in written and long_sums.same_as_written(*written), box)


def _verify(gold, predicted):
    import math_verify
    import sympy

    equality.install()
    gold, predicted = _comparable(gold, predicted), _comparable(predicted, gold)
    if math_verify.verify(gold, predicted, timeout_seconds=None):
        return True
    # math-verify compares a letter alone by its name only.
    return sympy.Symbol in (type(gold), type(predicted)) and equality.same(gold, predicted)


def _graded(equal, extracted):
    return float(equal), extracted[:200], "equal" if equal else "not equal"


# --- what is compared with what -------------------------------------------------------------------------------------

_FORMULA = re.compile(r"(\$\$|\$)([^$]+)(\$\$|\$)|(\\\(|\\\[)((?:[^\\]|\\[^)\]])+)(\\\)|\\\])")


def _formulas_normal(text):
    """A text whose formulas are in normal form."""

    def inner(found):
        opening, content, closing = (found[i] or found[i + 3] for i in (1, 2, 3))
        return f"{opening}{_normal(content) or content}{closing}"

    return _FORMULA.sub(inner, text if text.isascii() else unicode_signs.to_latex(text))


def _with_same_units(gold, own, answer, box):
    """Drops a letter after one answer's number if it is the unit that the other lacks: `5 m` is 5, but `5m` is not."""
    ours, theirs = units.letter_after(own), units.letter_after(gold)
    if ours and not theirs and units.is_number(gold):
        return gold, ours[0]
    if theirs and not ours:
        upright = re.search(units.TEXT + r"\{\s*" + theirs[1] + r"\s*\}", box)
        if upright or re.search(r"[\s~,]" + theirs[1] + r"(?:\s*\^?\s*\{?\s*[23²³]\}?)?\W*$", answer):
            return theirs[0], own
    return gold, own


def _comparable(value, other):
    """A point as a column, if that is what it is compared with."""
    import sympy

    if not isinstance(other, sympy.MatrixBase) or 1 not in other.shape:
        return value
    if isinstance(value, sympy.Interval) and value.left_open and value.right_open:
        value = sympy.Tuple(value.start, value.end)
    if isinstance(value, sympy.Tuple) and len(value) == len(other):
        return sympy.Matrix(*other.shape, list(value))
    return value


def _same_set(answer, box):
    """Do words name the set that a formula is: all real numbers, or no solution?"""
    if not re.search("real|solution", answer.lower()):
        return False
    return bool(real_sets.equal(_normal(answer) or "", _normal(box) or "", _read))


# --- words and other bases ------------------------------------------------------------------------------------------

_FONT = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|operatorname)\s*\{([^{}]*)\}"
_IN_FONT = re.compile(_FONT)
_LAYOUT = re.compile(r"\\(?:displaystyle|textstyle|left|right|quad)(?![a-zA-Z])|\\[][(),;:! ]|[{}$~]")
_WORD = re.compile("[A-Za-z]{4,}")
_BASED = re.compile(r"\s*([0-9A-Za-z]{1,30})_\{?([0-9]{1,2})\}?\s*")


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
        if not _WORD.fullmatch(answer) or normalize.is_name(answer):
            return None
    if gold and answer in (r"\mathrm{e}", r"\mathrm{i}"):
        return None  # constants
    plain = _LAYOUT.sub(" ", _IN_FONT.sub(r"\1", answer))
    plain = " ".join(plain.strip(" ().,$\"'").casefold().split())
    return re.sub("^(?:an?|the) ", "", plain)


def loaded_modules():
    """Names of the modules that this worker has imported."""
    return sorted(sys.modules)
