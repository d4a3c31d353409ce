r"""Mathematical signs of Unicode as LaTeX: math-verify leaves most of them out, or takes them for letters."""

import re
import unicodedata

from cgrpo_jax.rewards.formulas import latex_groups

_SUPER = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣ", "0123456789+-=()nix", strict=True))
_SUB = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₓₘₖ", "0123456789+-=()nixmk", strict=True))
_GREEK = {
    "α": "alpha", "β": "beta", "γ": "gamma", "δ": "delta", "ε": "varepsilon", "ϵ": "epsilon", "ζ": "zeta", "η": "eta",
    "θ": "theta", "ι": "iota", "κ": "kappa", "λ": "lambda", "μ": "mu", "ν": "nu", "ξ": "xi", "π": "pi", "ρ": "rho",
    "σ": "sigma", "τ": "tau", "υ": "upsilon", "φ": "phi", "ϕ": "phi", "χ": "chi", "ψ": "psi", "ω": "omega",
    "Γ": "Gamma", "Δ": "Delta", "Θ": "Theta", "Λ": "Lambda", "Ξ": "Xi", "Π": "Pi", "Σ": "Sigma", "Φ": "Phi",
    "Ψ": "Psi", "Ω": "Omega",
}  # fmt: skip
_COMMANDS = {
    "×": "times", "✕": "times", "⨯": "times", "·": "cdot", "⋅": "cdot", "∙": "cdot", "•": "cdot", "・": "cdot",
    "∞": "infty", "≤": "le", "≦": "le", "⩽": "le", "≥": "ge", "≧": "ge", "⩾": "ge", "≠": "ne", "±": "pm", "∓": "mp",
    "∪": "cup", "∩": "cap", "∈": "in", "∉": "notin", "∅": "emptyset", "⌀": "emptyset", "∖": "setminus", "≈": "approx",
    "≡": "equiv", "∨": "lor", "∧": "land", "⟨": "langle", "〈": "langle", "⟩": "rangle", "〉": "rangle",
    "⌊": "lfloor", "⌋": "rfloor", "⌈": "lceil", "⌉": "rceil", "→": "to", "…": "ldots", "⋯": "ldots", "∣": "mid",

    "∠": "angle", "∑": "sum", "∏": "prod", "∫": "int", "ℝ": "mathbb{R}",
    "ℤ": "mathbb{Z}", "ℕ": "mathbb{N}", "ℚ": "mathbb{Q}",
    "ℂ": "mathbb{C}", "ℓ": "ell", "∘": "circ", "⊆": "subseteq", "′": "prime", "ℯ": "e",
}  # fmt: skip
_PLAIN = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212\ufe63\uff0d", "-"),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\u2061\u2062\u2063\ufeff\u00ad\u20ac\u00a3\u00a5\u20b9\u20a9\u20bd", ""),
    **dict.fromkeys("“”„‟\"‘’", ""), "÷": "/", "∕": "/", "⁄": "/", "∶": ":", "°": r"^\circ ", "º": r"^\circ ",
    "、": ",", "，": ",", "；": ";", "。": ".", "％": "%", "＝": "=", "＊": "*", "∗": "*", "｜": "|", "ℎ": "h",
    "µ": "u",
    "或者": r" \text{ or } ", "或": r" \text{ or } ", "以及": r" \text{ and } ", "并且": r" \text{ and } ",
    "和": r" \text{ and } ", "与": r" \text{ and } ", "且": r" \text{ and } ", "及": r" \text{ and } ",
    "﹣": "-", "￥": "", "＄": "", "【": "[", "】": "]", "˚": r"^\circ ", "‰": r"\times 10^{-3} ",
    "✓": "", "✔": "", "✅": "",
}  # fmt: skip
_TABLE = (
    {sign: rf"\{name} " for sign, name in (_GREEK | _COMMANDS).items() if name[-1] != "}"}
    | {sign: rf"\{name}" for sign, name in _COMMANDS.items() if name[-1] == "}"}
    | {"ℯ": "e"}
    | _PLAIN
)
_SIGN = re.compile("|".join(sorted(map(re.escape, _TABLE), key=len, reverse=True)))
_SUPERS = re.compile(f"[{''.join(_SUPER)}]+")
_SUBS = re.compile(f"[{''.join(_SUB)}]+")
_ROOT = re.compile("([√∛∜])\\s*(?:([0-9.]+|\\\\frac\\{[0-9]+\\}\\{[0-9]+\\}|\\\\[a-z]+|[a-zA-Z]))")
_ROOT_GROUP = re.compile("([√∛∜])\\s*[({]")
_ROOT_INDEX = re.compile("(?<![0-9a-zA-Z)\\]}])([²³⁴])\\s*√\\s*(?=[0-9({a-z])")
_INDEX = {"√": "", "∛": "[3]", "∜": "[4]"}
_NTH = {"³": "∛", "⁴": "∜"}
_VULGAR = re.compile("[\u00bc-\u00be\u2150-\u215e\u2189]")
_DOT = re.compile("([0-9])\u0307")
_BAR = re.compile("((?:[0-9][\u0305\u0304])+)")

# Chinese numbers by the ten thousand, and words after a number, which are its unit.
_MYRIAD = {"万": 4, "萬": 4, "亿": 8, "億": 8}
_MYRIADS = re.compile("(?<=[0-9])\\s*([万萬亿億])")
_HAN = r"[\u3400-\u9fff]{1,12}"
_HAN_UNIT = re.compile(
    r"(?<=[0-9})\]a-zA-Z%])\s*(?:\\(?:text|mathrm)\s*\{\s*)?"
    + rf"{_HAN}(?:\s*/\s*{_HAN})?"
    + r"(?:\^\{?[0-9]\}?)?\s*\}?"
    r"(?=\s*(?:$|[,;.$)\]]|\\text))"
)


def to_latex(text: str) -> str:
    r"""A text with signs of Unicode as one in LaTeX.

    Full-width and styled letters and digits become plain ones, superscripts exponents, fractions `\frac`; a Chinese
    word after a number is a unit and goes.

    Example:
      >>> to_latex("1.5×10⁶"), to_latex("（１，２）"), to_latex("√2"), to_latex("12平方厘米")
      ('1.5\\times 10^{6}', '(1,2)', '\\sqrt{2}', '12')
    """
    text = _VULGAR.sub(_fraction, text)
    text = _ROOT_INDEX.sub(lambda found: f"{_NTH.get(found[1], '√')}", text)
    text = _SUPERS.sub(lambda found: "^{" + "".join(_SUPER[sign] for sign in found.group()) + "}", text)
    text = _SUBS.sub(lambda found: "_{" + "".join(_SUB[sign] for sign in found.group()) + "}", text)
    text = _BAR.sub(lambda found: rf"\overline{{{re.sub('[^0-9]', '', found[1])}}}", text)
    text = _DOT.sub(r"\\dot{\1}", text)
    # One by one: composing letters with marks, or reordering them, is not wanted.
    text = "".join(letter if letter in _TABLE or letter.isascii() else _compatible(letter) for letter in text)
    text = _SIGN.sub(lambda found: _TABLE[found.group()], text)
    text = latex_groups.replace_calls(text, _ROOT_GROUP, lambda found, inner: rf"\sqrt{_INDEX[found[1]]}{{{inner}}}")
    text = _ROOT.sub(_root, text)
    text = _MYRIADS.sub(lambda found: rf"\times 10^{{{_MYRIAD[found[1]]}}} ", text)
    return _HAN_UNIT.sub("", text)


def _compatible(letter: str) -> str:
    plain = unicodedata.normalize("NFKC", letter)
    return "".join(_TABLE.get(part, part) for part in plain) if len(plain) <= 4 else letter


def _fraction(sign: re.Match) -> str:
    above, _, below = unicodedata.normalize("NFKC", sign.group()).partition("⁄")
    return rf"\frac{{{above}}}{{{below}}}"


def _root(found: re.Match) -> str:
    return rf"\sqrt{_INDEX[found[1]]}{{{found[2]}}}"
