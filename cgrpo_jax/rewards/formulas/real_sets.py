r"""Inequalities, intervals, unions and set-builders as sets of real numbers, so that any two of them compare.

Run inside workers: SymPy is imported where it is needed.
"""

import re
from collections.abc import Callable
from typing import Any

from cgrpo_jax.rewards.formulas import latex_groups

# An answer with none of these is no set of this module's, and is left to math-verify.
_SIGNS = re.compile(
    r"[<>]|\\(?:leq?|geq?|lt|gt|neq?|cup|setminus|mid|notin|infty|bigcup)(?![a-zA-Z])|\\mathbb\{R\}|:|real|solution"
)
_OR = re.compile(r"\s*\\text\s*\{\s*or\s*\}\s*|\s*,?\s*\bor\b\s*|\s*\\(?:lor|vee)(?![a-zA-Z])\s*")
_AND = re.compile(
    r"\s*\\text\s*\{\s*and\s*\}\s*|\s*,?\s*\band\b\s*|\s*\\(?:land|wedge)(?![a-zA-Z])\s*|\s*[,;]\s*|\s*&\s*"
)
_CUP = re.compile(r"\s*\\(?:big)?cup(?![a-zA-Z])\s*")
_CAP = re.compile(r"\s*\\cap(?![a-zA-Z])\s*")
_MINUS = re.compile(r"\s*\\(?:setminus|backslash)(?![a-zA-Z])\s*|(?<=\\mathbb\{R\})\s*-\s*(?=\\\{)")
_NAME = r"(?:[a-zA-Z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|omega|phi|rho|sigma|tau|varphi))(?:_\{?\w+\}?)?"
_BUILDER = re.compile(
    rf"^\\?\{{\s*({_NAME})\s*(?:\\in\s*(?:\\mathbb\{{R\}}|R)\s*)?(?:\\(?:mid|vert|colon)(?![a-zA-Z])|[|:])\s*(.*?)\s*\\?\}}$"
)
_MEMBER = re.compile(rf"^({_NAME}|[a-z]\([a-z]\))\s*\\in(?![a-zA-Z])\s*(.+)$")
_NO_MEMBER = re.compile(rf"^({_NAME})\s*\\notin(?![a-zA-Z])\s*(.+)$")
_RELATION = re.compile(r"\s*(<=|>=|<|>|\\(?:leq|le|geq|ge|lt|gt|neq|ne)(?![a-zA-Z])|=)\s*")
_KINDS = {
    "<": "<", r"\lt": "<", ">": ">", r"\gt": ">", r"\le": "<=", r"\leq": "<=", "<=": "<=", r"\ge": ">=", r"\geq": ">=",
    ">=": ">=", r"\ne": "!=", r"\neq": "!=", "=": "=",
}  # fmt: skip
_ALL = re.compile(
    r"\\mathbb\{R\}|\\text\s*\{\s*(?:all )?real(?:s| numbers?)\s*\}|(?:all )?real(?:s| numbers?)|R", re.IGNORECASE
)

_NONE = re.compile(r"(?:\\text\s*\{\s*)?no (?:real )?solutions?\s*\.?\}?|\\emptyset", re.IGNORECASE)
_ALL_BUT = re.compile(
    r"(?:\\text\s*\{\s*)?(?:all )?real (?:numbers|values)(?: of [a-z])?,? (?:except|other than|excluding)(?: for)?"
    r"\s*\}?\s*(.+)$",
    re.IGNORECASE,
)
_UNEQUAL = re.compile(rf"^({_NAME})\s*(?:\\neq?(?![a-zA-Z]))\s*([^<>=]+)$")

Parse = Callable[[str], Any]  # LaTeX -> its SymPy expression, None if it can't be read


class NoSetError(ValueError):
    """The text is no set of real numbers."""


_ERRORS = (NoSetError, TypeError, ValueError, AttributeError, NotImplementedError)  # SymPy's, at what has no order


def may_be(text: str) -> bool:
    """Does a normal answer look like a set? False says that it is none of this module's."""
    return _SIGNS.search(text) is not None


def equal(gold: str, own: str, parse: Parse) -> bool | None:
    r"""Are two normal answers the same set of real numbers? None if one of them is none, or has another variable.

    Example:
      >>> equal("(3,\\infty)", "x>3", parse)
      True
    """
    try:
        gold_names, gold_set = _read(gold, parse)
        own_names, own_set = _read(own, parse)
        if gold_names and own_names and gold_names != own_names:
            return False
        return _same(gold_set, own_set)
    except _ERRORS:
        return None


def is_set(text: str, parse: Parse) -> bool:
    """Is a normal answer a set of real numbers?"""
    try:
        return may_be(text) and _read(text, parse) is not None
    except _ERRORS:
        return False


def _read(text: str, parse: Parse) -> tuple[set[str], Any]:
    """The variables that a text names, and its set."""
    text = text.strip()
    if (found := _BUILDER.match(text)) is not None:
        names, values = _read(found[2], parse)
        if names - {found[1]}:
            raise NoSetError(text)
        return set(), values  # bound: its name is of no meaning
    import sympy

    if (found := _UNEQUAL.match(text)) is not None and not re.search(r"\\neq?(?![a-zA-Z])|\\in", found[2]):
        return {found[1]}, sympy.Complement(sympy.S.Reals, _points(found[2], parse))
    if (found := _ALL_BUT.match(text)) is not None:
        return set(), sympy.Complement(sympy.S.Reals, _points(re.sub(rf"^{_NAME}\s*=\s*", "", found[1]), parse))
    alternatives = [part for part in latex_groups.split_top(text, _OR)]
    if len(alternatives) > 1:
        return _joined([_read(part, parse) for part in alternatives], sympy.Union)
    if _RELATION.search(_outside(text)) is None and (found := _MEMBER.match(text)) is not None:
        return {found[1]}, _read(found[2], parse)[1]
    conditions = latex_groups.split_top(text, _AND)
    if len(conditions) > 1:
        read = [_read(part, parse) for part in conditions]
        both = _joined(read, sympy.Intersection)
        # "x < 1 and x > 3" lists both parts: nothing is in them at once.
        return both if both[1] is not sympy.S.EmptySet else _joined(read, sympy.Union)
    if (found := _MEMBER.match(text)) is not None:
        return {found[1]}, _read(found[2], parse)[1]
    if (found := _NO_MEMBER.match(text)) is not None:
        return {found[1]}, sympy.Complement(sympy.S.Reals, _read(found[2], parse)[1])
    for separator, join in ((_MINUS, sympy.Complement), (_CUP, sympy.Union), (_CAP, sympy.Intersection)):
        parts = latex_groups.split_top(text, separator)
        if len(parts) > 1:
            return _joined([_read(part, parse) for part in parts], join)
    return _atom(text, parse)


def _outside(text: str) -> str:
    """A text without what is in brackets, so that a relation in a set-builder is not the answer's own."""
    return re.sub(r"\\\{.*\\\}|[(\[].*[)\]]", "", text)


def _points(text: str, parse: Parse) -> Any:
    """The numbers of a list, as a set."""
    import sympy

    points = []
    for part in latex_groups.split_top(text, re.compile(f"{_AND.pattern}|{_OR.pattern}")):
        value = parse(part)
        if not isinstance(value, sympy.Expr | sympy.FiniteSet):
            raise NoSetError(text)
        points += value.args if isinstance(value, sympy.FiniteSet) else [value]
    return sympy.FiniteSet(*points)


def _joined(parts: list[tuple[set[str], Any]], join: Callable[..., Any]) -> tuple[set[str], Any]:
    names = set().union(*(names for names, _ in parts))
    if len(names) > 1:
        raise NoSetError("several variables")
    result = parts[0][1]
    for _, values in parts[1:]:
        result = join(result, values)
    return names, result


def _atom(text: str, parse: Parse) -> tuple[set[str], Any]:
    import sympy

    if _ALL.fullmatch(text.strip()):
        return set(), sympy.S.Reals
    if _NONE.fullmatch(text.strip()):
        return set(), sympy.S.EmptySet
    if len(signs := _RELATION.findall(text)) and r"\{" not in text:
        return _chain(_RELATION.split(text)[::2], [_KINDS[sign] for sign in signs], parse)
    value = parse(text)
    if isinstance(value, sympy.Set):
        if not value.is_subset(sympy.S.Reals) and not isinstance(value, sympy.Interval | sympy.FiniteSet):
            raise NoSetError(text)
        if isinstance(value, sympy.FiniteSet):
            return set(), sympy.FiniteSet(*value.args)
        return set(), value
    raise NoSetError(text)


def _chain(sides: list[str], signs: list[str], parse: Parse) -> tuple[set[str], Any]:
    """The solutions of `1 < x <= 3` and the like: one variable alone on a side, bounds on the others."""
    import sympy

    values = [parse(side) for side in sides]
    if any(not isinstance(value, sympy.Expr) for value in values):
        raise NoSetError("no numbers on both sides")
    variables = [value for value in values if value.is_Symbol]
    if len(variables) > 1:  # x > a: a is the bound
        variables = [value for value in variables if value.name in "xyztuvw"] or variables[:1]
    free = set().union(*(value.free_symbols for value in values))
    if len(variables) != 1 or any(variables[0] in value.free_symbols for value in values if value is not variables[0]):
        return _solved(values, signs, free)
    variable, result = variables[0], sympy.S.Reals
    for left, sign, right in zip(values, signs, values[1:], strict=False):
        if variable is left:
            result = sympy.Intersection(result, _side(sign, right))
        elif variable is right:
            result = sympy.Intersection(
                result, _side({"<": ">", "<=": ">=", ">": "<", ">=": "<="}.get(sign, sign), left)
            )
        else:
            raise NoSetError("a relation without the variable")
    return {str(variable)}, result


def _side(sign: str, bound: Any) -> Any:
    import sympy

    infinite = bound in (sympy.oo, -sympy.oo)
    if sign in ("<", "<="):
        return sympy.Interval(-sympy.oo, bound, True, sign == "<" or infinite)
    if sign in (">", ">="):
        return sympy.Interval(bound, sympy.oo, sign == ">" or infinite, True)
    point = sympy.FiniteSet(bound)
    return point if sign == "=" else sympy.Complement(sympy.S.Reals, point)


def _solved(values: list[Any], signs: list[str], free: set[Any]) -> tuple[set[str], Any]:
    """The solutions of inequalities in one variable that are linear, quadratic, or of an absolute value."""
    import sympy

    if len(free) != 1 or any(sign == "=" for sign in signs):
        raise NoSetError("no inequality in one variable")
    variable, result = next(iter(free)), sympy.S.Reals
    real = sympy.Symbol("x", real=True)
    for left, sign, right in zip(values, signs, values[1:], strict=False):
        difference = (left - right).xreplace({variable: real}).doit()
        plain = difference.replace(sympy.Abs, lambda inner: inner)
        if not plain.is_polynomial(real) or sympy.Poly(plain, real).degree() > 2 or plain.count_ops() > 30:
            raise NoSetError("an inequality that is not simple")
        relation = {"<": sympy.Lt, "<=": sympy.Le, ">": sympy.Gt, ">=": sympy.Ge, "!=": sympy.Ne}[sign]
        solved = sympy.solveset(relation(difference, 0), real, sympy.S.Reals)
        if not isinstance(solved, sympy.Interval | sympy.Union | sympy.FiniteSet | type(sympy.S.EmptySet)):
            raise NoSetError("no set of intervals")
        result = sympy.Intersection(result, solved)
    return {str(variable)}, result


def _same(first: Any, second: Any) -> bool:
    """Equal, part for part: intervals by their ends."""
    if first == second:
        return True
    parts = [_parts(one) for one in (first, second)]
    if len(parts[0]) != len(parts[1]):
        return False
    left = list(parts[1])
    for part in parts[0]:
        match = next((other for other in left if _same_part(part, other)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _parts(values: Any) -> list[Any]:
    import sympy

    if isinstance(values, sympy.Union):
        return [part for one in values.args for part in _parts(one)]
    if isinstance(values, sympy.FiniteSet):
        return list(values.args)
    if isinstance(values, sympy.Complement) and isinstance(values.args[1], sympy.FiniteSet):
        cut = sympy.Complement(values.args[0], values.args[1], evaluate=True)
        return _parts(cut) if cut != values else [cut]
    return [values]


def _same_part(first: Any, second: Any) -> bool:
    import sympy

    from cgrpo_jax.rewards.formulas import equality

    if isinstance(first, sympy.Interval) and isinstance(second, sympy.Interval):
        return (
            (first.left_open, first.right_open) == (second.left_open, second.right_open)
            and equality.same(first.start, second.start)
            and equality.same(first.end, second.end)
        )
    if isinstance(first, sympy.Expr) and isinstance(second, sympy.Expr):
        return equality.same(first, second)
    return first == second
