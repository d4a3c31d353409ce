r"""Rules of `normalize` about more than a number or a name: systems, joined equations, congruences, primes."""

import re

from cgrpo_jax.rewards.formulas import latex_groups

_SYSTEM = re.compile(
    r"(?:\\\{|\{)?\s*\\begin\s*\{(cases|array|aligned|gathered|split|align\*?)\}\s*(?:\{[lcr| ]*\})?"
    r"(.*?)\\end\s*\{\1\}\s*\}?",
    re.DOTALL,
)
_ROW_END = re.compile(r"\\\\(?:\s*\[[^\[\]]*\])?")
_RELATION = re.compile(r"[=<>]|\\(?:leq?|geq?|lt|gt|neq?|in)(?![a-zA-Z])")
_ALIGNED = re.compile(r"&\s*(?=[=<>]|\\(?:leq?|geq?|lt|gt|neq?|in)(?![a-zA-Z]))|(?<=[=<>])\s*&")


def systems(text: str) -> str:
    """A system of equations as a list of them; a function by cases, and a matrix, are none."""
    found = _SYSTEM.fullmatch(text.strip())
    if found is None:
        return text
    rows = [_ALIGNED.sub("", row).strip().rstrip(",;.").strip() for row in _ROW_END.split(found[2])]
    rows = [row for row in rows if row]
    if any("&" in row or r"\begin" in row for row in rows):
        return text
    return ", ".join(rows) if len(rows) == 1 or all(map(_RELATION.search, rows)) else text


_LOGIC = re.compile(r"(?<!\s)\s*\\(lor|vee|land|wedge)(?![a-zA-Z])\s*")


def joined(text: str) -> str:
    """Signs of logic between equations as words."""
    if not all(map(_RELATION.search, parts := _LOGIC.split(text)[::2])) or len(parts) < 2:
        return text
    return _LOGIC.sub(lambda found: rf"\text{{ {'or' if found[1] in ('lor', 'vee') else 'and'} }}", text)


_ANY_INTEGER = re.compile(  # one space at most between words
    r"(?: ?(?:,|;|(?=\()|\\text ?\{)|(?<=[0-9a-z)}]) )[ ,]{0,4}"
    r"(?:where|with|for(?: (?:all|any|some|every|each))?)? ?\}? ?\(? ?"
    r"(?P<letter>[kmnl]) ?\\in ?(?:\\mathbb ?\{? ?Z ?\}?|\\mathbf ?\{? ?Z ?\}?|\\Z|Z) ?\)? ?$"
)
_ORDER = re.compile(r"[<>]|\\(?:leq?|geq?|lt|gt|neq?)(?![a-zA-Z])")


def any_integer(text: str) -> str:
    r"""Without the remark that the letter of a formula is any integer; one of `\mathbb{N}` limits the values."""
    plain = " ".join(text.split())
    found = _ANY_INTEGER.search(plain)
    if found is None or _ORDER.search(rest := plain[: found.start()]) or not latex_groups.balanced(rest):
        return text
    in_formula = re.search(rf"(?<!\\)(?<![a-zA-Z]){found['letter']}(?![a-zA-Z])|[0-9]{found['letter']}", rest)
    return rest.rstrip(" ,;") if in_formula else text


_PRIME = re.compile(r"(?<![\w'\\}])([a-zA-Z])\s*(?:'|\^\s*\{\s*\\prime\s*\}|\^\s*\\prime(?![a-zA-Z]))(?!')")
_DERIVATIVE = re.compile(
    r"\\[dt]?frac\s*\{\s*(?P<d>d|\\partial)\s*(?P<of>[a-zA-Z])\s*\}\s*\{\s*(?P=d)\s*(?P<by>[a-zA-Z])\s*\}"
)


def derivatives(text: str) -> str:
    r"""`x'` and `\frac{dy}{dx}` as letters of their own: the parser would read x, and 0."""
    text = _DERIVATIVE.sub(lambda found: f"{found['of']}_{{d{found['by']}}}", text)
    if r"\text" in text or text.count("'") > 4 or re.search("[a-zA-Z]{3}", re.sub(r"\\[a-z]+", "", text)):
        return text
    return _PRIME.sub(r"\1_{prime}", text)


_MODULUS = re.compile(
    r"\s*(?:\\pmod(?![a-z])\s*|\(?\s*\\bmod(?![a-z])\s*|\(\s*(?:\\(?:text|mathrm|operatorname)\s*\{\s*mod\s*\}|\\?mod(?![a-z]))[\s~]*"
    r"|\\mod(?![a-z])\s*)\{?\s*([0-9]+)\s*\}?\s*\)?\s*$"
)
_RESIDUE = re.compile(r"(?:([a-zA-Z])\s*\\equiv\s*)?(-?[0-9]+)\s*")


def congruences(text: str) -> str:
    r"""`x \equiv 10 \pmod 7` as the residue and its modulus; `17 \bmod 5` is a number."""
    if (modulus := _MODULUS.search(text)) is None or not int(modulus[1]):
        return text
    residue = _RESIDUE.fullmatch(text[: modulus.start()])
    if residue is None:
        return text
    value = int(residue[2]) % int(modulus[1])
    is_number = residue[1] is None and re.match(r"\s*\\b?mod", modulus[0])
    return str(value) if is_number else rf"M_{{{modulus[1]}}}+{value}"
