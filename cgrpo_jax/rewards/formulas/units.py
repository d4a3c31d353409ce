r"""Units of measure after a number, which a final answer may have or lack.

math-verify drops text, upright letters and some letters of a formula as units, so that `3+4\mathrm{i}` is 7 to it and
`2t` is 2. Here a table says which words are units, and where they may stand.
"""

import re

from cgrpo_jax.rewards.formulas import latex_groups

_SYMBOLS = frozenset(
    # Of one letter: units where they are upright, or stand after a number and a space.
    "m s g h N V A C F K L l J W T "
    # lengths, areas, volumes, masses, times
    "km cm mm nm um pm dm ft in yd mi km2 cm2 m2 mm2 m3 cm3 sqft sqm ha ml mL dl dL cl cL kL cc gal qt oz lb lbs kg mg "
    "ug ton tons min mins sec secs hr hrs ms ns us ps fs yr yrs wk am pm AM PM "
    # physics and chemistry
    "Hz kHz MHz GHz kN mN Pa kPa MPa GPa hPa atm bar psi torr Torr kJ MJ mJ eV keV MeV GeV cal kcal Cal Wh kWh kW MW "
    "GW mW hp mA uA kV mV Wb mT nT mH uH mF uF nF pF nC uC mC kC ohm Ohm ohms mol mmol kmol M mM uM amu Da rad rads "
    "mrad sr deg degs dB cd lm lx Bq Gy Sv rpm mph kmh kph kmph fps mps dyn erg AU ly pc kpc Mpc Kg KG KM CM kgm "
    # money, counts, information
    "USD EUR GBP RMB CNY INR Rs rs cents pts kB MB GB TB bits bytes bit byte".split()
)
_WORDS = frozenset(
    "meter metre kilometer kilometre centimeter centimetre millimeter millimetre decimeter decimetre micrometer "
    "nanometer inch inches foot feet yard mile acre hectare liter litre milliliter millilitre gallon quart pint cup "
    "ounce pound gram gramme kilogram milligram microgram tonne hour minute second day week month year decade century "
    "centuries millisecond microsecond nanosecond degree radian celsius fahrenheit kelvin newton joule watt volt "
    "ampere amp coulomb farad tesla hertz pascal kilojoule kilowatt calorie mole molar lumen candela decibel "
    "unit square cubic sq cu per dollar cent euro rupee yuan yen pound penny pennies peso buck "
    "people person persons man men woman women child children boy girl student apple orange ball book coin ticket "
    "point step digit way time edge side face vertex vertices tile toy meal soldier monkey pie page car card chair "
    "item piece unit prime integer number element solution triangle".split()
)
_PRODUCTS = frozenset("mg ms us ps ns fs am pm in ha mN mT mH mF nT nH nF pF kC mC M d pc ly".split())  # unless spaced
_SINGLE = frozenset("msghNVACFKLlJWT")  # what a single letter may mean after a number
_MULTIPLES = {"hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12}
_OTHERWISE = frozenset(
    "or and if when where not no more less than least most over under mod times plus minus divided by pi sqrt "
    "percent pct percentage choose half halves third thirds quarter quarters dozen undefined infinity infinite "
    "sin cos tan cot sec csc ln log lg exp arcsin arccos arctan max min gcd lcm".split()
)

TEXT = r"\\(?:text|textrm|textnormal|textsf|textit|textbf|mathrm|mathit|mathbf|mathsf|mbox|hbox|operatorname)\s*"
_CONTENT = r"\{((?:[^{}]|\{[^{}]*\})*)\}"
_POWER = r"(?:\s*\^\s*(?:\{\s*(-?[0-9])\s*\}|(-?[0-9])))?"
_IN_TEXT = re.compile(TEXT + _CONTENT)
_NUMBER = re.compile(
    r"(?:\s+|(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][-+]?[0-9]{1,4}(?![0-9]))?"
    r"|\\(?:[dtc]?frac|[dt]?binom|sqrt|pi|times|cdot|pm|infty|ln|log|exp|sin|cos|tan|cot|arc[a-z]{3})(?![a-zA-Z])"
    r"|\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![a-zA-Z]))|e(?=\s*\^)|_(?=\s*\{?[0-9])|[-+*/^(){}\[\],:]|\\[%{}]|[%!])*"
)
_NAMED = re.compile(
    r"(?:(?:[A-Za-z]|\\[a-zA-Z]+)(?:_\{?[A-Za-z0-9]+\}?)?(?:\([A-Za-z0-9]\))?\s*(?:=|\\approx|\\in)\s*)?"
)
_NO_END = re.compile(r"(?:[\s+*/^(\[,:{-]|\\(?:times|cdot|pm|sqrt|[dtc]?frac)|\\\{)+$")
_TOKEN = re.compile(
    r"\s+|"
    + TEXT
    + _CONTENT
    + r"|\\frac\s*\{([^{}]*(?:\{[^{}]*\})?)\}\s*\{([^{}]*(?:\{[^{}]*\})?)\}|([A-Za-z]+)(?:-?[0-9](?![0-9]))?"
    r"|\^\s*(?:\{\s*-?[0-9]\s*\}|-?[0-9])|\\(?:cdot|times)(?![a-zA-Z])|[/*.()-]|\^\s*\{?\s*\\circ\s*\}?|\\circ"
    r"|\\(?:Omega|mu)(?![a-zA-Z])"
)
_CELSIUS = re.compile(
    r"(\^\s*(?:\{\s*\\(?:circ|degree)\s*\}|\\(?:circ|degree)))\s*(?:" + TEXT + r"\{\s*[CFK]\s*\}|[CFK](?![a-zA-Z]))\s*$"
)
_ORDINAL = re.compile(
    r"(?<=[0-9])\s*(?:\^\s*\{?\s*)?(?:" + TEXT + r"\{(?:st|nd|rd|th)\}|(?:st|nd|rd|th)(?![a-zA-Z]))\s*\}?\s*$"
)
_LAST_TEXT = re.compile(r"(?P<before>.*[^\s\\])(?P<space>\s*)" + TEXT + _CONTENT + _POWER + r"\s*\.?\s*$", re.DOTALL)
_LAST_WORD = re.compile(r"(?<=[0-9a-zA-Z)}\]|!])\s+([a-zA-Z]{2,})(?:\s*\^\s*\{?[23]\}?)?$")
_INNER = re.compile(
    r"(?<=[0-9})])(\s*)" + TEXT + r"\{\s*([A-Za-z]+)\.?(?:\s*(?:\^\s*\{?-?[0-9]\}?|/\s*[a-z]+))?\s*\}" + _POWER
    + r"(?=\s*(?:[,;)\]]|\\\}|$|\\text|\\mathrm|and\b|or\b|\\(?:le|ge|cup|lor)|[<>]))"
)  # fmt: skip
_MULTIPLE = re.compile(
    r"(?<=[0-9])\s*(?:" + TEXT + r"\{\s*)?(hundred|thousand|million|billion|trillion)s?(?![a-z])(\s+[a-zA-Z ]+)?\s*\}?"
)


_SQUARE_METRE = re.compile(r"m\s*\^\s*\{?\s*[23]\s*\}?")


def known(word: str) -> bool:
    """Is a word a unit of the table, also in the plural?

    Example:
      >>> known("km"), known("hours"), known("e"), known("x")
      (True, True, False, False)
    """
    if word in _SYMBOLS:
        return True
    low = word.lower()
    return any(one in _WORDS for one in (low, low.removesuffix("s"), low.removesuffix("es")))


def without(text: str) -> str:
    r"""An answer without the unit of its number.

    Example:
      >>> without(r"12 km/h"), without(r"5\,\mathrm{m}"), without(r"3\mathrm{x}"), without("2t")
      ('12', '5', '3\\mathrm{x}', '2t')
    """
    if not re.search(r"[A-Za-z]", text):
        return text
    text = _CELSIUS.sub(r"\1", text)
    text = _MULTIPLE.sub(lambda found: rf"\times 10^{{{_MULTIPLES[found[1]]}}}", text)
    text = _ORDINAL.sub("", text)
    text = _INNER.sub(lambda found: "" if known(found[2]) else found.group(), text)
    number = _number_before(text)
    if number is not None and number[1].strip() and _is_unit(number[1], len(number[0])):
        return number[0].rstrip()
    found = _LAST_WORD.search(text)
    if found is not None and known(found[1]) and found[1] not in _PRODUCTS:
        return text[: found.start()]
    found = _LAST_TEXT.match(text)
    if found is not None and latex_groups.balanced(found["before"]) and _droppable(found):
        return found["before"].rstrip()
    return text


def is_number(text: str) -> bool:
    """Is an answer a number, perhaps with a name, and no formula?"""
    number = _number_before(text)
    return number is not None and not number[1].strip()


def letter_after(text: str) -> tuple[str, str, bool] | None:
    r"""A number, the single letter after it that may be its unit, and whether the letter is one for sure.

    Example:
      >>> letter_after("5m"), letter_after("5 m"), letter_after(r"5\text{ m}"), letter_after("5x")
      (('5', 'm', False), ('5', 'm', False), ('5', 'm', True), None)
    """
    number = _number_before(text)
    if number is None:
        return None
    rest = number[1].strip()
    upright = _IN_TEXT.fullmatch(rest)
    letter = upright[1].strip() if upright else rest
    if _SQUARE_METRE.fullmatch(letter):
        return number[0].rstrip(), "m", upright is not None
    return (number[0].rstrip(), letter, upright is not None) if letter in _SINGLE and letter else None


def _number_before(text: str) -> tuple[str, str] | None:
    """An answer's number, with the name it may be given, and what follows it; None if it has none."""
    named = _NAMED.match(text)
    begin = 0 if named is None else named.end()
    found = _NUMBER.match(text, begin)
    end = begin if found is None else found.end()
    number = text[begin:end]
    # Signs and brackets at its end belong to the unit.
    if end < len(text) and (open_ := _NO_END.search(number)):
        number = number[: open_.start()]
    if not re.search(r"[0-9]|\\pi", number) or not latex_groups.balanced(number):
        return None
    end = begin + len(number)
    return text[:end], text[end:]


def _is_unit(suffix: str, before: int) -> bool:
    """Is all of what follows a number a unit? A bare letter is one only beside others, or as in `letter_after`."""
    suffix = re.sub(r"\\Omega(?![a-zA-Z])", " ohm", suffix)
    suffix = re.sub(r"\\mu(?![a-zA-Z])\s*(?:" + TEXT + r"\{)?(?=[a-zA-Z])", r" u", suffix)
    words, bare, position = [], [], 0
    for found in _TOKEN.finditer(suffix):
        if found.start() != position:
            return False
        position = found.end()
        upright, above, below, plain = found.groups()
        for content in (upright, above, below):
            if content is not None:
                words += re.findall("[A-Za-z]+", re.sub(TEXT, " ", content))
        if plain is not None:
            words.append(plain)
            bare.append(plain)
    if position != len(suffix) or not words or any(word.lower() in _OTHERWISE for word in words):
        return False
    if len(words) == 1 and len(words[0]) == 1:
        return not bare and words[0] in _SINGLE
    spaced = suffix[0].isspace()
    if not spaced and any(word in _PRODUCTS for word in bare):
        return False
    if re.match(r"[A-Za-z](?![A-Za-z])", suffix) and not re.search(r"[/^]", suffix[:4]):
        return False  # a letter of a formula, before its unit
    return all(known(word) or (len(word) > 3 and (word not in bare or spaced)) for word in words) and (
        not bare or any(len(word) > 1 for word in words) or "/" in suffix or "^" in suffix
    )


def _droppable(found: re.Match) -> bool:
    """May text at the end of an answer go, as a unit or a remark? Letters, functions and joining words may not."""
    content = found[3]
    words = re.findall("[A-Za-z]+", content)
    if not words or words[0].lower() in _OTHERWISE or re.search("[0-9]", re.sub(r"\^\s*\{?-?[0-9]\}?", "", content)):
        return False
    if found["before"].rstrip()[-1:] in "_^=<>+-*/(,{&\\" or re.search(
        r"\\(?:in|le|ge|ne|times|cdot)$", found["before"]
    ):
        return False
    if len(words) == 1 and len(words[0]) == 1:
        return words[0] in _SINGLE and (content[:1].isspace() or bool(found["space"]))
    return True
