r"""Numbers as people write them: `1,234.5`, `1.234,56`, `1 234 567`, `2 1/2`, `\frac{3}{4}`, `1.5e3`, `2 \times 10^3`.

Three digits after a comma, a space or an apostrophe are a group of thousands; after a point they are one only beside
another such group or a decimal comma, so that `1.234` is little more than 1. A comma before one, two, or more than
three digits is a decimal comma, and so is that of `0,125`. Digits that fit none of it (`1.2.3`, `10:30`, `1,2,3`) are
misread.
"""

import math
import re
import unicodedata

UPRIGHT = "\ue000"  # in the place of a single letter that is set upright: a unit, no variable
FULL_WIDTH = {code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)}
_ZEROS = (0x660, 0x6F0, 0x966, 0x9E6, 0xE50, *range(0x1D7CE, 0x1D800, 10))  # of other scripts, and bold ones
_SPACES = "\t\xa0\u1680\u202f\u205f\u3000" + "".join(map(chr, range(0x2000, 0x200B)))
_FRACTIONS = "\xbc\xbd\xbe" + "".join(map(chr, range(0x2150, 0x215F)))
_RAISED = "\u2070\xb9\xb2\xb3\u2074\u2075\u2076\u2077\u2078\u2079\u207a\u207b"
_ASCII = FULL_WIDTH | {zero + i: str(i) for zero in _ZEROS for i in range(10)}
_ASCII |= dict.fromkeys(map(ord, _SPACES), " ") | dict.fromkeys(map(ord, f"\u200b\u2060\ufeff{UPRIGHT}"))
_ASCII |= dict.fromkeys(map(ord, "\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d"), "-")
_ASCII |= {0x2217: "*", 0x22C5: "\xb7", 0x2044: "/", 0x2215: "/", 0x2019: "'", 0x66A: "%", 0x66B: ".", 0x66C: ","}
_ASCII |= {0xFFE5: "\xa5", 0xFF08: " (", 0xFF09: ") "}  # such brackets hold remarks, no factors
_ASCII |= {ord(c): " " + unicodedata.normalize("NFKC", c).replace("\u2044", "/") for c in _FRACTIONS}
_RUN_OF_RAISED = re.compile(f"[{_RAISED}]+")
_LOWERED = str.maketrans(_RAISED, "0123456789+-")

_LATEX = {r"\%": "%", r"\$": "$", r"\#": "#", r"\!": "", "~": " ", "{,}": ",", "{.}": ".", ":=": "=", "==": "="}
_LATEX |= dict.fromkeys((r"\,", r"\;", r"\:", r"\ ", r"\(", r"\)", r"\[", r"\]", r"\quad", r"\qquad"), " ")
_LATEX |= dict.fromkeys(
    (r"\left", r"\right", r"\displaystyle", r"\textstyle", r"\big", r"\Big", r"\bigl", r"\bigr"), ""
)
_LATEX |= {r"\dfrac": r"\frac", r"\tfrac": r"\frac", r"\cfrac": r"\frac", r"\times": "\xd7", r"\cdot": "\xb7"}
_LATEX |= {
    r"\pi": "\u03c0",
    r"\div": "\xf7",
    r"\degree": "\xb0",
    r"\Omega": "\u03a9",
    r"\mu": "\u03bc",
    r"\pounds": "\xa3",
    r"\euro": "\u20ac",
}
_LATEX |= dict.fromkeys((r"\approx", r"\simeq", r"\cong", r"\doteq"), "\u2248")
_LATEX |= dict.fromkeys(("<=", ">=", "!=", r"\le", r"\ge", r"\leq", r"\geq", r"\ne", r"\neq", r"\lt", r"\gt"), "<")
_COMMAND = re.compile(r"\\[A-Za-z]+|\\[^A-Za-z]|\{[,.]\}|[<>!:=]=|~")
_DEGREES = re.compile(r"\^\s?(?:\{\s?\\circ\s?\}|\\circ(?![A-Za-z]))|\\circ(?![A-Za-z])")
_ORDINAL = re.compile(r"(?<=[0-9]) ?\^ ?(?:\{ ?(th|st|nd|rd) ?\}|(th|st|nd|rd)\b)")
_OVER = re.compile(r"\{([^{}\\]{1,40})\\over(?![A-Za-z])([^{}\\]{1,40})\}")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|math(?:rm|bf|sf|it|tt)|[mh]box|operatorname|boldsymbol|bm|pmb|underline|emph|f?box(?:ed)?)"
    r"\s?\{((?:[^{}]|\{[^{}]*\})*)\}"
)
_ONE_LETTER = re.compile(r"(?<![^\W\d_])[A-Za-z\u03a9\u03bc\xb5](?![^\W\d_])")
_CONSTANTS = ("e", "i", "j")  # are set upright, too


def tidy(text: str) -> str:
    r"""Text with plain digits, signs, spaces and LaTeX: `1\,234\text{ km}` is `1 234 km`, and `10²` is `10^{2}`."""
    text = _RUN_OF_RAISED.sub(lambda found: f"^{{{found.group().translate(_LOWERED)}}}", text.translate(_ASCII))
    text = _OVER.sub(r"\\frac{\1}{\2}", _DEGREES.sub("\xb0", text))
    text = _ORDINAL.sub(r" \1\2", _TEXT.sub(_upright, text))
    return _COMMAND.sub(lambda found: _LATEX.get(found.group(), found.group()), text)


def _upright(found: re.Match) -> str:
    words = re.sub(r"(?<!\\)\$", "", found[1]).strip()
    return f" {words if words in _CONSTANTS else _ONE_LETTER.sub(UPRIGHT, words)} "


_PLAIN = r"(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)"
_GROUPED = (
    r"(?:[1-9][0-9]{0,2}(?:,[0-9]{3}){1,30}(?:\.[0-9]+)?"  # 1,234.5
    r"|[1-9][0-9]?(?:,[0-9]{2}){1,30},[0-9]{3}(?:\.[0-9]+)?"  # 12,34,567
    r"|[1-9][0-9]{0,2}(?:'[0-9]{3}){1,30}(?:[.,][0-9]+)?"  # 1'234.5
    r"|[1-9][0-9]{0,2}(?: [0-9]{3}){1,9}(?:[.,][0-9]+)?(?! [0-9]{3}(?![0-9]))"  # 1 234,5
    r"|[1-9][0-9]{0,2}(?:(?:\.[0-9]{3}){1,30},[0-9]+|(?:\.[0-9]{3}){2,30}))"  # 1.234,5 and 1.234.567
)
_DECIMAL_COMMA = r"(?:[0-9]+,(?:[0-9]{4,}|[0-9]{1,2})|0,[0-9]{3})"
_WHOLE_END = r"(?![0-9]|[.,'][0-9])"
CURRENCY = "$\u20ac\xa3\xa5\u20b9\u20a9\u20bd\xa2"
_SIGN = (
    r"(?:(?<![\w.)\]}%\xb0])(?P<sign>[-+](?! )|(?<![0-9)\]}] )[-+] |(?<![0-9] )(?:minus|negative) ))?"
    rf"(?:(?:\b(?:US|CA|AU|HK|NZ))?[{CURRENCY}] ?(?P<inner_sign>-)?)?"
)
_POWER = r" ?(?:\^|\*\*) ?(?P<%s>\{ ?[-+]? ?[0-9]+ ?\}|\( ?[-+]? ?[0-9]+ ?\)|[-+]?[0-9]+)(?![0-9]|[.,][0-9])"
_ARGUMENT = rf" ?(?P<%s>\{{ ?[-+]? ?(?:{_GROUPED}|{_PLAIN}) ?\}}|[0-9])"
NUMBER = re.compile(
    rf"{_SIGN}(?<![0-9])(?:"
    rf"(?:(?P<whole>[0-9]{{1,9}}) {{0,3}})?\\frac{_ARGUMENT % 'above'}{_ARGUMENT % 'below'}"
    r"|(?P<mixed>[0-9]{1,9}) {1,3}(?P<numerator>[1-9][0-9]{0,8})/(?P<denominator>[0-9]{1,9})(?![\w/]|[.,:][0-9])"
    r"|(?P<misread>[0-9]+(?:[/:][0-9]+){2,}|[0-9]+(?::[0-9]+)+)"
    rf"|10{_POWER % 'power_of_ten'}"
    rf"|(?P<value>(?:{_GROUPED}|{_DECIMAL_COMMA}|{_PLAIN}){_WHOLE_END})"
    r"(?:[eE](?P<exponent>[-+]?[0-9]+)(?!\w|\.[0-9])"
    rf"| ?(?:[\xd7\xb7*]|[xX]) ?10{_POWER % 'power'}"
    rf"| ?/ ?(?P<divisor>{_GROUPED}|{_PLAIN})(?![\w/]|[.,:][0-9]))?"
    r"|(?P<misread_too>[0-9][0-9.,']*[0-9]))"
)
_LARGEST_POWER = 9999  # in size; no float comes near it


def value_of(found: re.Match) -> float | None:
    """The value of a match of `NUMBER`; None if it is misread, divided by 0, or no float is as large or as small."""
    try:
        value = _unsigned(found)
    except (ZeroDivisionError, OverflowError):
        return None
    if value is None or not math.isfinite(value):
        return None
    negative = (found["sign"] or "").strip() not in ("", "+")
    return -value if negative != bool(found["inner_sign"]) else value


def has_decimal_comma(found: re.Match) -> bool:
    """Is a comma all that says where the decimals of a match begin, as in "1,5"? It may part two numbers as well."""
    return re.fullmatch(_DECIMAL_COMMA, found["value"] or "") is not None


def _unsigned(found: re.Match) -> float | None:
    if found["above"]:
        above, below = (_decimal(found[name].strip("{ }")) for name in ("above", "below"))
        return above / below if found["whole"] is None else _mixed(int(found["whole"]), above, below)
    if found["mixed"]:
        return _mixed(*(int(found[name]) for name in ("mixed", "numerator", "denominator")))
    if found["power_of_ten"]:
        return 10.0 ** _power(found["power_of_ten"])
    if not found["value"]:
        return None
    value = _decimal(found["value"]) / (_decimal(found["divisor"]) if found["divisor"] else 1.0)
    power = found["exponent"] or found["power"]
    if not power or not value:
        return value
    return value * 10.0 ** _power(power) or None  # smaller than a float


def _mixed(whole: int, above: float, below: float) -> float | None:
    return whole + above / below if 0 < above < below else None


def _power(text: str) -> int:
    digits = re.sub(r"[^0-9]", "", text).lstrip("0")
    size = int(digits or "0") if len(digits) <= len(str(_LARGEST_POWER)) else _LARGEST_POWER
    return -size if "-" in text else size


def _decimal(text: str) -> float:
    """The value of digits with separators, as they are matched."""
    text = re.sub("[ ']", "", text)
    point, comma = text.rfind("."), text.rfind(",")
    if point >= 0 and comma >= 0:
        text = text.replace(",", "") if point > comma else text.replace(".", "").replace(",", ".")
    elif comma >= 0:
        grouped = len(text) - comma == 4 and not text.lstrip("+-").startswith("0")
        text = text.replace(",", "" if grouped else ".")
    elif text.count(".") > 1:
        text = text.replace(".", "")
    return float(text)
