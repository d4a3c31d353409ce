r"""Rules of `normalize` about signs, layout, fonts, words and units: what surrounds the mathematics of an answer."""

import re

from cgrpo_jax.rewards.formulas import latex_groups, unicode_signs


def signs(text: str) -> str:
    return text if text.isascii() else unicode_signs.to_latex(text)


_DOUBLED = re.compile(r"\\\\(?=[a-zA-Z{}])")
_ANGLES = re.compile(r"\\left\s*<|\\right\s*>")
_SIZES = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![a-zA-Z])\.?\s*")
_SPACES = re.compile(
    r"(?P<row>\\\\)|(?<=[0-9])\\[,;: ](?=[0-9]{3}(?![0-9]))|\\!\s*"
    r"|(?P<space>\\[,;:> ]|~|\\(?:q?quad|thinspace|medspace|thickspace|enspace|hfill|displaystyle|textstyle|scriptstyle"
    r"|nolimits|limits|mathstrut|strut|allowbreak|nobreak|noindent)(?![a-zA-Z])|\\[hv]space\*?\s*\{[^{}]*\}"
    r"|\\(?:label|tag)\*?\s*\{[^{}]*\})"
)
_MATH_MARKS = re.compile(r"\\\$|\$|(?<!\\)\\[()\[\]]")
_MONEY = re.compile(
    r"\\(?:pounds|euro|yen|textdollar|texteuro|textsterling|mathsterling)(?![a-zA-Z])|(?:US|Rs)\.?\s*(?=[0-9]|\\?\$)"
)
_ABOUT = r"(?:about|approx(?:\.|imately)?|roughly)"
_IN_FONT = r"\\(?:text|textbf|mathrm|mbox)\s*\{\s*"
_LABEL = rf"{_IN_FONT}(?:[A-Za-z][A-Za-z ']*[:=]|the (?:final )?answer is)\s*\}}|(?:final )?answer\s*:"
_BEGINNING = re.compile(
    rf"^(?:=|\\(?:approx|simeq|sim|cong)(?![a-zA-Z])|{_ABOUT}\s|{_IN_FONT}{_ABOUT}\s*\}}|{_LABEL})\s*",
    re.IGNORECASE,
)
_MARKS_AT_END = re.compile(r"(?<=\S)\s*\\(?:checkmark|blacksquare|square|Box|qed|qedsymbol)(?![a-zA-Z])\s*$")
_END = re.compile(r"(?<=[0-9}a-zA-Z)\]])\s*[.;,]$|(?<=[0-9])\s*\.$")


_DEGREE_WORDS = re.compile(
    r"(?<=[0-9a-z)])\s*(?:\\(?:text|mathrm)\s*\{\s*(?:degrees?|deg)\s*\}|\s(?:degrees?|deg)(?![a-zA-Z]))"
)


def degree_words(text: str) -> str:
    """Degrees in words as the sign, which counts within a sine."""
    return _DEGREE_WORDS.sub(r"^\\circ ", text)


def layout(text: str) -> str:
    if r"\begin" not in text:
        text = _DOUBLED.sub(lambda _: "\\", text)
    text = _ANGLES.sub(lambda found: r"\langle " if "left" in found.group() else r"\rangle ", text)
    text = _SIZES.sub("", text)
    text = _SPACES.sub(lambda found: found["row"] or (" " if found["space"] else ""), text)
    return text


def ends(text: str) -> str:
    text = _BEGINNING.sub("", _MONEY.sub("", _MATH_MARKS.sub("", text)).strip())
    text = _MARKS_AT_END.sub("", text)
    return _END.sub("", text).strip()


_COMMAND_FONT = re.compile(
    r"\\(?:mathbf|boldsymbol|bm|pmb|mathit|mathnormal|mathsf|mathtt|textbf|textit|textsf|texttt|emph|underline|uline"
    r"|mathord|mathop|mathbin|mathrel|mathinner|fbox|boxed|ensuremath|textup|textmd|textcolor\s*\{[^{}]*\}"
    r"|colorbox\s*\{[^{}]*\})\s*\{"
)
_TEXT_FONT = re.compile(r"\\(?:text|textrm|textnormal|mathrm|mbox|hbox)\s*\{")
_WHOLE_TEXT = re.compile(r"\\(?:text|textrm|textnormal|mathrm|mbox)\s*\{([^{}]*[0-9][^{}]*)\}")
_SWITCH = re.compile(r"\{\s*\\(?:bf|it|sf|tt|bfseries|itshape|boldmath|sl|em)(?![a-zA-Z])\s*")
_RM = re.compile(r"\{\s*\\rm(?![a-zA-Z])\s*([^{}]*)\}|\\rm(?![a-zA-Z])\s*(?:\{([^{}]*)\}|([a-zA-Z/]+))")
_LOOSE_SWITCH = re.compile(
    r"\\(?:rm|bf|it|sf|tt|bfseries|itshape|boldmath|sl|em|tiny|scriptsize|footnotesize|small|normalsize|large|Large|LARGE"
    r"|huge|Huge)(?![a-zA-Z])\s*"
)
_COLOR = re.compile(r"\\color\s*(?:\[[^\]]*\])?\s*\{[^{}]*\}")
_TEXT_SPACE = re.compile(
    r"(\\(?:text|textrm|textnormal|mathrm|mbox|hbox|operatorname))\s*\*?\s+(?=\{)|(\\operatorname)\*"
)


def fonts(text: str) -> str:
    text = _TEXT_SPACE.sub(lambda found: found[1] or found[2], text)
    text = _COLOR.sub("", text)
    text = _RM.sub(lambda found: rf"\mathrm{{{found[1] or found[2] or found[3]}}}", text)
    text = _LOOSE_SWITCH.sub("", _SWITCH.sub("{", text))

    def inner(found: re.Match, content: str) -> str | None:
        if re.fullmatch(r"[A-Za-z .,'()-]*[A-Za-z]{2}[A-Za-z .,'()-]*", content):
            return rf"\text{{{content}}}" if found.group().startswith(r"\text") else content
        return content if re.match(r"[a-zA-Z]*$", content) is None else f"{content}"

    text = latex_groups.replace_calls(text, _COMMAND_FONT, inner)
    if (whole := _WHOLE_TEXT.fullmatch(text)) is not None:
        text = whole[1]
    # Text that holds commands is mathematics.
    return latex_groups.replace_calls(text, _TEXT_FONT, lambda _, content: content if "\\" in content else None)


# --- names and words ---

_FUNCTIONS = (
    "arcsin arccos arctan arccot arcsec arccsc arsinh arcosh artanh sinh cosh tanh sin cos tan cot sec csc ln log exp "
    "max min gcd lcm det"
).split()
_OTHER_NAMES = {
    "asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot", "cotan": "cot", "cosec": "csc",
    "arctg": "arctan", "arcctg": "arccot", "sh": "sinh", "ch": "cosh", "th": "tanh", "asinh": "arsinh",
    "acosh": "arcosh", "atanh": "artanh", "lg": "log_{10}",
}  # fmt: skip
NAMES = {name: name for name in _FUNCTIONS} | _OTHER_NAMES
_COMMAND_NAME = re.compile(r"\\(tg|ctg|cotan|cosec|arctg|arcctg|lg|sh|ch)(?![a-zA-Z])\s*(?:_\{?10\}?)?")
_UPRIGHT = re.compile(r"\\(?:text|textrm|textnormal|mathrm|mbox|hbox|operatorname)\s*\{([^{}]*)\}")
_NUMERIC_TEXT = re.compile(
    r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+|[a-zA-Z])|[-+]?[0-9.,/ ]*[0-9](?:\s*%|\s+[A-Za-z ]+)?"
    r"|[-0-9., ]+(?: (?:and|or) [-0-9., ]+)+"
)


def upright(text: str) -> str:
    def read(found: re.Match) -> str:
        content = found[1].strip()
        name = content.strip(" .")
        before = text[: found.start()].rstrip()
        if not content:
            return " "
        if re.search(r"_\s*\{?$", before) and content.isalnum():
            return content
        if name.lower() in ("or", "and"):
            return rf"\text{{ {name.lower()} }}"
        if name == "sqrt":
            return r"\sqrt"
        if name in NAMES:
            return rf"\{NAMES[name]} "
        if re.fullmatch(r"[A-Za-z]", content):
            return content if before.endswith("^") else f" {content} "
        if name.lower() in ("percent", "pct", "percentage", "per cent"):
            return r"\%"
        if name.lower() == "to" and ":" not in text:
            return ":"
        if name.lower() in ("infinity", "inf"):
            return r"\infty "
        if name in ("pi", "theta", "alpha", "beta"):
            return rf"\{name} "
        return content if _NUMERIC_TEXT.fullmatch(content) else found.group()

    return _UPRIGHT.sub(read, text)


def function_names(text: str) -> str:
    r"""`\lg` and `\tg` as the functions that they name."""
    return _COMMAND_NAME.sub(lambda found: rf"\{NAMES[found[1]]} ", text)
