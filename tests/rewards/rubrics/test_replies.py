"""What replies of a judge say, and which of them say nothing."""

import pytest
import time_growth

from cgrpo_jax.rewards.rubrics import replies

SHOWN = ["It is big.\n  `Paris`  has 2 million people.", "f(2) returns 3"]


@pytest.mark.parametrize(
    ("text", "verdicts"),
    [
        ("1: yes\n2: no", [True, False]),
        ("**1**: Yes, it does.\n - 2. NO", [True, False]),
        ("<p>\n2) no\n1) yes", [True, False]),
        ("\n\n - 1:\nyes\n\n\t* 2:\n\n**no**", [True, False]),
        ("1: yes", None),
        ("1: yes\n2: no\n3: yes", None),
        ("1: yes\n1: no\n2: no", None),
        ("yes\nno", None),
        ("", None),
    ],
)
def test_verdicts(text, verdicts):
    assert replies.read_verdicts(text, number=2) == verdicts


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("Better: A", "a"),
        ("so:\n**Better:** B.", "b"),
        ("better: same", "same"),
        ("Better: A\nBetter: B", None),
        ("", None),
    ],
)
def test_comparisons(text, better):
    assert replies.read_comparison(text) == better


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Good.\nScore: 7", 7),
        ("**Score: 10**", 10),
        ("**Score:** 8/10", 8),
        ("Score: 1\nscore: 1", 1),
        ("Score: 7.", 7),
        ("Score: 0", None),
        ("Score: 11", None),
        ("Score: 7.5", None),
        ("Score: 3\nScore: 4", None),
        ("Score: N", None),
        ("I give it 7", None),
        ("", None),
    ],
)
def test_scores(text, score):
    assert replies.read_score(text) == score


@pytest.mark.parametrize(
    ("text", "ruling"),
    [
        ("It says so.\nQuote: It is big.\nVerdict: yes", (True, "It is big.")),
        ("**Quote:** `Paris` has 2 million people.\n**Verdict:** no", (False, "Paris` has 2 million people.")),
        ('Quote: "has   2 million"\nVerdict: yes.', (True, "has 2 million")),
        ("Quote: f(2) returns 3\nVerdict: NO", (False, "f(2) returns 3")),
        ("Quote: first\nQuote: It is big.\nVerdict: yes", (True, "It is big.")),
        ("Quote: nothing\nVerdict: no", (False, "")),
        ("Quote:\nVerdict: no", (False, "")),
        ("Quote: nothing\nVerdict: yes", None),  # what holds can be shown
        ("Quote: It is small.\nVerdict: yes", None),  # made up
        ("Quote: It is small.\nVerdict: no", None),
        ("Verdict: yes", None),
        ("Quote: It is big.", None),
        ("Quote: It is big.\nVerdict: yes\nVerdict: no", None),
        ("Quote: It is big.\nVerdict: perhaps", None),
        ("", None),
    ],
)
def test_a_ruling_rests_on_what_was_shown(text, ruling):
    assert replies.read_ruling(text, shown=SHOWN) == ruling


def test_a_quotation_is_short_and_one_line():
    found = replies.read_ruling(f"Quote: {'x' * 5000}\nVerdict: yes", shown=["x" * 9000])
    assert found == (True, "x" * replies.MAX_QUOTE)
    assert replies.read_ruling("Quote: a\x1b[2Jb\nVerdict: no", shown=["a\x1b[2Jb"]) == (False, "a\\x1b[2Jb")


@pytest.mark.parametrize(("text", "calls"), [("f(1)\nf(2)", "f(1)\nf(2)"), ("I would call f.", None), ("", None)])
def test_calls(text, calls):
    assert replies.read_calls(text) == calls


@pytest.mark.parametrize(
    "piece",
    ["\n", "- \n", "*", "1", "1: ", "1\n", "1: yes\n", "better", "better:\n", "[", "- a\n", "quote:", "quote",
     "quote: \n", "verdict", "verdict:\n", "verdict: yes\n", "score", "score:\n", "score: 1", " ", "* _"],
)  # fmt: skip
def test_time_is_linear_in_the_reply(piece):
    assert time_growth.is_linear(lambda text: replies.read_verdicts(text, number=2), piece)
    assert time_growth.is_linear(replies.read_comparison, piece)
    assert time_growth.is_linear(replies.read_score, piece)
    assert time_growth.is_linear(replies.read_calls, piece)
    assert time_growth.is_linear(lambda text: replies.read_ruling(text, shown=["a quote"]), piece)


@pytest.mark.parametrize("text", ["1" * 5000 + ": yes", "1: yes\n" + "0" * 5000 + "2: no", "\ud800: yes"])
def test_numbers_of_any_length_are_no_criteria(text):
    assert replies.read_verdicts(text, number=2) is None
    assert replies.read_score(f"Score: {'1' * 5000}") is None
