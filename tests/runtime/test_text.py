"""Text of others: what is valid, what is replaced or refused, and what people see of it."""

import io
import sys
import unicodedata

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runtime import console, text


@pytest.mark.parametrize(
    ("given", "cleaned"),
    [
        ("", ""),
        ("plain", "plain"),
        ("naïve 東京 \U0001f600", "naïve 東京 \U0001f600"),
        ("\ud800", "?"),
        ("a\ud83d", "a?"),
        ("\udc00\ud800", "??"),
        ("\ud83d\ude00", "\U0001f600"),
        ("\ud83d\ud83d\ude00\ude00", "?\U0001f600?"),
        ("x\udcff", "x?"),  # a byte that is no UTF-8, as file names and arguments have it
        ("\x00\x1b", "\x00\x1b"),
    ],
)
def test_half_of_a_surrogate_pair_is_replaced(given, cleaned):
    assert text.clean(given) == cleaned
    assert text.is_valid(given) is (given == cleaned)
    text.clean(given).encode()


def test_half_of_a_surrogate_pair_is_refused_with_its_place():
    assert text.check("naïve \U0001f600", "the question") == "naïve \U0001f600"
    with pytest.raises(UserError, match=r"^x.jsonl, line 3 is not valid Unicode: character 2 of 3 is U\+DBFF, half of"):
        text.check("a\udbffb", "x.jsonl, line 3")


def test_every_control_and_invisible_character_is_shown_as_an_escape():
    kept = set("\n\t")
    for number in range(sys.maxunicode + 1):
        one = chr(number)
        kind = unicodedata.category(one)
        if kind in ("Cc", "Cs", "Zl", "Zp") and one not in kept:
            assert text.shown(f"a{one}b") == f"a{ascii(one)[1:-1]}b", hex(number)
        elif kind in ("Lu", "Ll", "Nd", "Po", "Sm", "Zs"):
            assert text.shown(f"a{one}b") == f"a{one}b", hex(number)
    for one in "\u202a\u202e\u2066\u2069\u200e\u200f\u061c\u200b\u2060\ufeff\xad\U000e0041\u180e":
        assert text.shown(f"a{one}b") == f"a{ascii(one)[1:-1]}b"


@pytest.mark.parametrize(
    ("given", "seen"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("right\rwrong", r"right\rwrong"),
        ("two\r\nlines\n\tindented", "two\\r\nlines\n\tindented"),
        ("\N{FAMILY}\u200d\N{GIRL}", "\N{FAMILY}\u200d\N{GIRL}"),  # what emoji and scripts are joined by
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("ad\u200dmin", r"ad\u200dmin"),
        (r"\frac{1}{2}", r"\frac{1}{2}"),
    ],
)
def test_what_people_see(given, seen):
    assert text.shown(given) == seen


def test_one_line():
    assert text.one_line(" a\n\tb \x1b[31m\u2028c ") == r"a b \x1b[31m c"


@pytest.mark.parametrize(
    ("value", "most", "seen"),
    [
        ("short", 80, "'short'"),
        ("\x1b\u202e\ud800", 80, r"'\x1b\u202e\ud800'"),
        ("x" * 10**6, 20, "'xxxxxxxxxxxxxxxx..."),
        ([1, [2]], 80, "[1, [2]]"),
    ],
)
def test_a_quoted_value_is_short_and_has_no_control_characters(value, most, seen):
    assert text.quoted(value, most) == seen


def test_what_has_no_repr_is_quoted():
    assert text.quoted(10**5000) == "an int too large to be shown"
    deep = []
    for _ in range(100_000):
        deep = [deep]
    assert text.quoted(deep) == "a list too large to be shown"


def test_a_line_on_the_screen_holds_no_control_characters(capsys):
    console.say("the model says \x1b[8mnothing\x1b[0m \u202e\ud800\nand more")
    assert capsys.readouterr().err == "the model says \\x1b[8mnothing\\x1b[0m \\u202e\\ud800\nand more\n"


def test_a_screen_that_knows_no_unicode_gets_escapes():
    file = io.TextIOWrapper(raw := io.BytesIO(), encoding="ascii")
    console.write("naïve 東京\n", file)
    file.flush()
    assert raw.getvalue() == b"na\\xefve \\u6771\\u4eac\n"
