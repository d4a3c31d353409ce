r"""Final answers as math-verify reads them right: an ordered table of rules, each with examples that are its test.

Answers of models and of data sets come in more spellings than math-verify's grammar has, and what it can't read it
often reads as something else: `1.5e3` as 3 + 1.5 e, `3+4\mathrm{i}` as 7, `0.\dot3` as nothing. `normalize` rewrites an
answer before, one rule after the other; what no rule and no grammar reads raises `Unreadable`, or fails in the parser.

To add a rule: a function from text to text, its place in RULES, one example at least.
"""

import dataclasses
import functools
from collections.abc import Callable

from cgrpo_jax.rewards.formulas import command_rules as commands
from cgrpo_jax.rewards.formulas import number_rules as numbers
from cgrpo_jax.rewards.formulas import structure_rules as structure
from cgrpo_jax.rewards.formulas import text_rules as text
from cgrpo_jax.rewards.formulas import units
from cgrpo_jax.rewards.formulas.number_rules import Unreadable as Unreadable


@dataclasses.dataclass(frozen=True)
class Rule:
    """A step of `normalize`.

    Attributes:
      name: what it is about.
      apply: from text to text.
      needs: the rule changes only texts that hold one of these; empty for any text.
      examples: pairs of a text and what the rule makes of it.
    """

    name: str
    apply: Callable[[str], str]
    needs: tuple[str, ...]
    examples: tuple[tuple[str, str], ...]


RULES = (
    Rule(
        "signs of Unicode",
        text.signs,
        (),
        (("x⁴+1", "x^{4}+1"), ("１２", "12"), ("3⁄4", "3/4"), ("1或2", r"1 \text{ or } 2"), ("√2", r"\sqrt{2}")),
    ),
    Rule(
        "layout",
        text.layout,
        ("\\", "~"),
        (
            (r"\left( 3, 4 \right)", "( 3, 4 )"),
            (r"10,\!080", "10,080"),
            (r"10\,080", "10080"),
            (r"\\frac12", r"\frac12"),
        ),
    ),
    Rule(
        "ends and money",
        text.ends,
        (),
        ((r"\$5", "5"), (r"\text{about }5", "5"), (r"5 \checkmark", "5"), ("$x$", "x"), ("42.", "42"), (r"\(3\)", "3")),
    ),
    Rule(
        "fonts",
        text.fonts,
        ("\\",),
        (
            (r"\boldsymbol{12}", "12"),
            (r"\underline{5}", "5"),
            (r"\bf{12}", "{12}"),
            (r"\large 12", "12"),
            (r"\text { cm }", r"\text{ cm }"),
            (r"{\bf 3}", "{3}"),
        ),
    ),
    Rule(
        "systems",
        structure.systems,
        ("begin",),
        ((r"\begin{cases}x=1\\y=2\end{cases}", "x=1, y=2"), (r"\begin{aligned}x&=1\end{aligned}", "x=1")),
    ),
    Rule(
        "congruences",
        structure.congruences,
        ("mod",),
        ((r"x \equiv 10 \pmod 7", "M_{7}+3"), (r"3 (\text{mod } 7)", "M_{7}+3"), (r"17 \bmod 5", "2")),
    ),
    Rule(
        "any integer",
        structure.any_integer,
        ("Z",),
        ((r"2k\pi, k\in\mathbb{Z}", r"2k\pi"), (r"x>3, k\in Z", r"x>3, k\in Z")),
    ),
    Rule(
        "derivatives",
        structure.derivatives,
        ("'", "prime", "frac"),
        (("x'", "x_{prime}"), (r"\frac{dy}{dx}", "y_{dx}"), ("3'", "3'")),
    ),
    Rule(
        "joined equations",
        structure.joined,
        ("\\lor", "\\vee", "\\land", "\\wedge"),
        ((r"x=2\lor x=3", r"x=2\text{ or }x=3"), (r"p \lor q", r"p \lor q")),
    ),
    Rule(
        "thousands", numbers.thousands, (",", " "), (("10{,}080", "10080"), ("1 234 567", "1234567"), ("1,23", "1,23"))
    ),
    Rule("degrees in words", text.degree_words, ("deg",), ((r"60\text{ degrees}", r"60^\circ "),)),
    Rule(
        "units",
        units.without,
        (),
        (("12 km/h", "12"), (r"5\mathrm{m}", "5"), (r"3\mathrm{x}", r"3\mathrm{x}"), (r"-3^\circ C", r"-3^\circ")),
    ),
    Rule(
        "upright letters and words",
        text.upright,
        ("\\",),
        ((r"3+4\mathrm{i}", "3+4 i "), (r"\operatorname{sin} x", r"\sin  x"), (r"\text{or}", r"\text{ or }")),
    ),
    Rule(
        "names of functions",
        text.function_names,
        ("\\",),
        ((r"\lg 100", r"\log_{10} 100"), (r"\tg x", r"\tan x")),
    ),
    Rule(
        "e-notation",
        numbers.e_notation,
        ("e", "E"),
        (("1.5e3", "1.5E3"), ("2e-05", "2E-05"), ("2e^x", "2e^x"), ("0x1e5", "0x1e5")),
    ),
    Rule(
        "repeating decimals",
        numbers.repeating,
        (".",),
        ((r"0.\dot3", r"\frac{3}{9}"), (r"0.1\overline{6}", r"\frac{15}{90}"), ("0.(3)", r"\frac{3}{9}")),
    ),
    Rule("mixed numbers", numbers.mixed, ("/",), (("2 1/2", r"2\frac{1}{2}"),)),
    Rule(
        "text as in programs",
        commands.program,
        (),
        (("-2*pi", r"-2*\pi "), ("3*x**2", "3*x^2"), ("x^(1/2)", "x^{1/2}"), ("sqrt(x+(1))", r"\sqrt{x+(1)}")),
    ),
    Rule("arguments", commands.arguments, ("\\",), ((r"\frac12", r"\frac{1}{2}"), (r"\sqrt2", r"\sqrt{2}"))),
    Rule("numbers side by side", numbers.apart, (" ",), (("2 x", "2 x"),)),
    Rule(
        "combinations",
        commands.choices,
        ("C", "P", "A", "choose"),
        (("C_{10}^{3}", r"\binom{10}{3}"), ("C_1^2", "C_1^2")),
    ),
    Rule(
        "factors", commands.factors, ("(", "binom"), (("2(3)", r"2\cdot (3)"), ("f(3)", "f(3)"), ("x_1(3)", "x_1(3)"))
    ),
    Rule(
        "degrees",
        commands.degrees,
        ("\\circ", "\\degree", "^o"),
        ((r"\sin 60^\circ", r"\sin (\frac{60 \pi}{180})"), (r"60^\circ", "60")),
    ),
    Rule(
        "sets and relations",
        commands.sets,
        ("\\", "]", "[", "^T", "^{T"),
        ((r"\varnothing", r"\emptyset "), (r"\langle 1,2\rangle", "(1,2)")),
    ),
    Rule("ratios", numbers.ratio, (":",), (("2:4:6", "(1,2,3)"), ("5:3", "5:3"))),
)


@functools.lru_cache(4096)
def normalize(answer: str) -> str:
    r"""A final answer in LaTeX that the parser reads as it was meant.

    Example:
      >>> normalize("-2*pi"), normalize(r"0.\dot{3}"), normalize("12 km/h"), normalize("1.5e3")
      ('-2*\\pi', '\\frac{3}{9}', '12', '1.5E3')

    Raises:
      Unreadable: it would be read as something else.
    """
    answer = answer.strip()
    if answer.isdigit() and answer.isascii():
        return answer
    for rule in RULES:
        if not rule.needs or any(part in answer for part in rule.needs):
            answer = rule.apply(answer)
    return answer.strip()


def is_name(word: str) -> bool:
    r"""Is a word the name of a letter, a function or a constant, such as theta?"""
    return commands.program(word) != word
