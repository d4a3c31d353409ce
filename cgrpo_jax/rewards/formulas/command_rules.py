r"""Rules of `normalize` about commands: arguments without braces, names without a backslash, degrees, sets."""

import re

from cgrpo_jax.rewards.formulas import latex_groups
from cgrpo_jax.rewards.formulas.text_rules import NAMES

_TWO_ARGUMENTS = re.compile(r"\\([dtc]?frac|[dt]?binom)(?![a-zA-Z])")
_RADICAL = re.compile(r"\\sqrt(?![a-zA-Z])\s*(\[[^\[\]]*\])?\s*(?!\{)")
_SHORT_LOG = re.compile(r"\\log_\s*([0-9a-z])\s*(?=[0-9a-zA-Z(\\])")


def arguments(text: str) -> str:
    r"""`\frac12`, `\sqrt2` and `\binom52` with braces."""
    for begin in [found.start() for found in _TWO_ARGUMENTS.finditer(text)][::-1]:
        found = _TWO_ARGUMENTS.match(text, begin)
        if found is None or (first := latex_groups.argument(text, found.end())) is None:
            continue
        digits = re.match(r"\s*([0-9]+)", text[first[1] :]) if first[0].isdigit() else None
        second = latex_groups.argument(text, first[1])
        if second is None:
            continue
        below, end = (digits[1], first[1] + digits.end()) if digits else second
        name = "frac" if "frac" in found[1] else "binom"
        text = rf"{text[:begin]}\{name}{{{first[0]}}}{{{below}}}{text[end:]}"
    for begin in [found.start() for found in _RADICAL.finditer(text)][::-1]:
        found = _RADICAL.match(text, begin)
        if found is not None and text[found.end() : found.end() + 1] not in ("{", "(", "[", ""):
            if (first := latex_groups.argument(text, found.end())) is not None:
                text = rf"{text[:begin]}\sqrt{found[1] or ''}{{{first[0]}}}{text[first[1] :]}"
    return _SHORT_LOG.sub(r"\\log_{\1} ", text)


def _index(name: str) -> str:
    return rf"(?:\{{\s*(?P<{name}>[0-9nmkrN+-]{{1,9}})\s*\}}|(?P<{name}1>[0-9nmkrN]))"


_CHOICES = (
    re.compile(rf"(?<![A-Za-z\\])(?P<kind>[CAP])\s*_\s*{_index('n')}\s*\^\s*{_index('k')}"),
    re.compile(rf"(?<![A-Za-z\\])(?P<kind>[CAP])\s*\^\s*{_index('k')}\s*_\s*{_index('n')}"),
    re.compile(rf"(?<![\w}}])(?:\{{\s*\}}\s*)?[_^]\s*{_index('n')}\s*(?P<kind>[CP])\s*_\s*{_index('k')}"),
    re.compile(r"(?<![A-Za-z\\])(?P<kind>C)\s*\(\s*(?P<n>[0-9]{1,6})\s*,\s*(?P<k>[0-9]{1,6})\s*\)"),
    re.compile(r"(?<![\w.])(?P<n>[0-9]{1,6})\s*(?P<kind>[CP])\s*(?P<k>[0-9]{1,6})(?!\w)"),
)
_CHOOSE = re.compile(r"^([^{}]+)\\choose\b([^{}]+)$")
_CHOOSE_WORD = re.compile(r"(?<![\w}])([0-9]+|[a-z])\s+(?:\\text\s*\{\s*)?choose\s*\}?\s+([0-9]+|[a-z])(?!\w)")


def choices(text: str) -> str:
    text = _CHOOSE_WORD.sub(r"\\binom{\1}{\2}", _CHOOSE.sub(r"\\binom{\1}{\2}", text))
    for pattern in _CHOICES:
        text = pattern.sub(_choice, text)
    return text


_NUMBER = r"-?(?:[0-9.]+|\\frac\{[0-9.]+\}\{[0-9.]+\})"
_FACTORS = re.compile(
    rf"((?<![\w^_.{{}}])[0-9.]+|\))\s*(?=\(\s*{_NUMBER}\s*\))|((?<![\w^_.{{}}])[0-9.]+|[)}}])\s*(?=\\binom)"
)


def factors(text: str) -> str:
    """Numbers in brackets beside each other are factors: the parser would take 2(3) for a mixed number, 5."""
    return _FACTORS.sub(lambda found: rf"{found[1] or found[2]}\cdot ", text)


def _choice(found: re.Match) -> str:
    """A number of combinations or permutations; a constant C_1 squared is neither."""
    parts = found.groupdict()
    n, k = (parts[name] or parts.get(f"{name}1") or "" for name in "nk")
    numbers = n.isdigit() and k.isdigit()
    if n.isdigit() and not (numbers and int(n) >= int(k)):
        return found.group()
    if parts["kind"] == "C":
        return rf"\binom{{{n}}}{{{k}}}"
    return rf"\frac{{{n}!}}{{({int(n) - int(k)})!}}" if numbers else found.group()


# --- text as in programs ---

_GREEK = "alpha beta gamma delta epsilon theta lambda sigma omega phi tau rho".split()
_RUN = re.compile(
    r"\\(?:text[a-z]*|mathrm|mbox|hbox|operatorname|begin|end|mathbb|mathcal)\s*\{[^{}]*\}|_\s*\{[^{}]*\}|\\[a-zA-Z]+|([A-Za-z]{2,})"
)
_CALLS = ("sqrt", "cbrt", "abs", "floor", "ceil")
_LOG_CALL = re.compile(r"(?<![\\a-zA-Z])log_?(2|10)\s*(?=\()")
_ROOT_CALL = re.compile(r"\\(sqrt|cbrt|abs|floor|ceil)\s*(\[[^\[\]]*\])?\s*\(")
_TIMES_TEN = re.compile(r"(?<=[0-9])\s*[xX]\s*(?=10\s*\^)")
_POWER_CALL = re.compile(r"\^\s*\(")
_SIGNED_POWER = re.compile(r"\^\s*([-+]\s*(?:[0-9]+(?:\.[0-9]+)?(?:/[0-9]+)?|[a-zA-Z](?![a-zA-Z])))")
_ANY_NAME = "|".join(sorted((*NAMES, "sqrt", "cbrt", "pi", "abs"), key=len, reverse=True))
_JOINED = re.compile(rf"()({_ANY_NAME})([a-zA-Z])|([a-zA-Z])(sin|cos|tan|ln|log|exp|sqrt)([a-zA-Z]?)")


def program(text: str) -> str:
    """Names of functions and constants without a backslash, `**`, and powers in round brackets."""
    text = _TIMES_TEN.sub(r"\\times ", re.sub(r"\*\*|\^\^", "^", text))
    text = re.sub(r"<\s*=|=<", r"\\le ", text)
    text = re.sub(r">\s*=", r"\\ge ", text).replace("+/-", r"\pm ")
    text = _LOG_CALL.sub(r"\\log_{\1}", text)
    text = _RUN.sub(lambda found: _named(found[1]) if found[1] else found.group(), text)
    text = latex_groups.replace_calls(text, _ROOT_CALL, _root)
    text = latex_groups.replace_calls(text, _POWER_CALL, lambda _, power: f"^{{{power}}}")
    return _SIGNED_POWER.sub(r"^{\1}", text)


def _named(run: str) -> str:
    if run in NAMES:
        return rf"\{NAMES[run]} "
    if run in _CALLS:
        return rf"\{run}"
    if run in ("pi", *_GREEK) or run.lower() == "pi":
        return rf"\{run.lower()} "
    if run in ("infinity", "inf", "oo", "infty", "Infinity"):
        return r"\infty "
    if (joined := _JOINED.fullmatch(run)) is None:
        return run
    before, name, after = (part or "" for part in (joined.groups()[:3] if joined[2] else joined.groups()[3:]))
    return f"{before}{_named(name)}{after}"


def _root(found: re.Match, content: str) -> str:
    if found[1] in ("abs", "floor", "ceil"):
        opening, closing = {"abs": "||", "floor": (r"\lfloor ", r"\rfloor "), "ceil": (r"\lceil ", r"\rceil ")}[
            found[1]
        ]
        return f"{opening}{content}{closing}"
    return rf"\sqrt{'[3]' if found[1] == 'cbrt' else found[2] or ''}{{{content}}}"


# --- degrees and sets ---

_DEGREE = r"\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)(?![a-zA-Z])|o(?![a-zA-Z]))\s*|\\degree(?![a-zA-Z])\s*"
_IS_DEGREE = re.compile(_DEGREE)
_TRIG = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])\s*(?:\^\s*(?:\{[^{}]*\}|[0-9]))?\s*")
_PLAIN_ANGLE = re.compile(rf"[0-9.]*\s*(?:[a-zA-Z]|\\[a-z]+)?\s*(?:{_DEGREE})")
_OF_NUMBER = re.compile(rf"([0-9]+(?:\.[0-9]+)?)\s*(?:{_DEGREE})")


def degrees(text: str) -> str:
    r"""Degrees are a factor within a sine, and a unit that may be left out elsewhere."""
    for begin in [found.start() for found in _TRIG.finditer(text)][::-1]:
        found = _TRIG.match(text, begin)
        if found is None:
            continue
        start = end = found.end()
        if text[start : start + 1] in ("(", "{", "["):
            end = latex_groups.group_end(text, start)
        elif text.startswith(r"\frac", start):
            for _ in range(2):
                part = latex_groups.argument(text, end + (5 if end == start else 0))
                end = -1 if part is None else part[1]
                if end < 0:
                    break
        else:
            end = _angle_end(text, start)
        if end < 0:
            continue
        if degree := _IS_DEGREE.match(text, end):
            end = degree.end()
        angle = text[start:end]
        if _IS_DEGREE.search(angle):
            angle = _OF_NUMBER.sub(r"\\frac{\1 \\pi}{180}", angle)
            angle = _IS_DEGREE.sub(r" \\frac{\\pi}{180} ", angle)
            text = f"{text[:start]}({angle.strip()}){text[end:]}"
    return _IS_DEGREE.sub("", text)


def _angle_end(text: str, start: int) -> int:
    found = _PLAIN_ANGLE.match(text, start)
    return start if found is None else found.end()


_SET_BEGIN = r"(?:^|\\cup|\\cap|\\in)\s*"
_SEMICOLONS = re.compile(r"[\[(][^\[\]{}(),;]+(?:;[^\[\]{}(),;]+)+[\])]")
_FRENCH_END = re.compile(rf"({_SET_BEGIN}\([^()\[\]]*)\[")
_SET_WORDS = (
    (re.compile(r"\\(?:varnothing|empty)(?![a-zA-Z])"), r"\\emptyset "),
    (re.compile(r"\{(?:[BV]|small)matrix\}"), "{pmatrix}"),
    (re.compile(r"(\)|\\end\{[bp]?matrix\})\s*\^\s*\{?\s*(?:T|\\top|\\intercal|\\mathsf\s*T)\s*\}?$"), r"\1^T"),
    (re.compile(r"^(\([^()]*,[^()]*\))\^T$"), r"\1"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\langle(?![a-zA-Z])\s*"), "("),
    (re.compile(r"\\rangle(?![a-zA-Z])"), ")"),
    (re.compile(r"\\(?:R|reals|Reals)(?![a-zA-Z])|\\(?:mathbf|mathrm|bf)\s*\{R\}"), r"\\mathbb{R}"),
    (re.compile(r"\\mathbb\s*(?:\{\s*([A-Z])\s*\}|([A-Z]))"), r"\\mathbb{\1\2}"),
    (re.compile(r"\\(?:geqslant|geqq)(?![a-zA-Z])"), r"\\ge "),
    (re.compile(r"\\(?:leqslant|leqq)(?![a-zA-Z])"), r"\\le "),
    (re.compile(r"\\not\s*="), r"\\ne "),
    (re.compile(r"\\not\s*\\in(?![a-zA-Z])"), r"\\notin "),
    (re.compile(r"\\(?:lvert|rvert|vert)(?![a-zA-Z])\s*"), "|"),
    (re.compile(r"(?<![0-9a-zA-Z)}\s])\s*\+\s*\\infty"), r"\\infty"),
    (re.compile(rf"({_SET_BEGIN})\]\s*([^\[\],;]+)\s*[,;]\s*([^\[\],;]+)\s*([\[\]])"), r"\1(\2,\3\4"),
    (re.compile(rf"({_SET_BEGIN})\[\s*([^\[\],;]+)\s*[,;]\s*([^\[\],;]+)\s*\["), r"\1[\2,\3)"),
)


def sets(text: str) -> str:
    for pattern, plain in _SET_WORDS:
        text = pattern.sub(plain, text)
    text = _SEMICOLONS.sub(lambda found: found.group().replace(";", ","), text)
    return _FRENCH_END.sub(r"\1)", text)
