"""Formulas that can't be read are tried once, and not all of very many."""

import pytest
from math_verify import parser

from cgrpo_jax.rewards import mathematics
from cgrpo_jax.rewards.formulas import attempts


@pytest.fixture
def tried(monkeypatch):
    """Formulas that the parser is given."""
    found = []

    def read(latex):
        found.append(latex)
        if "-" in latex:
            raise ValueError("no formula")
        return parser.Number(7)

    monkeypatch.setattr(parser, "parse_latex_cached", read)
    parser.extract_latex.cache_clear()
    return found


def test_a_formula_that_cannot_be_read_is_tried_once_a_response(tried):
    text = "so $7$" + "$$a-$$ " * 300
    assert mathematics.parse(text)[0] == 7
    assert tried.count("a-") == 1 and len(tried) == 2
    assert mathematics.parse(text)[0] == 7
    assert tried.count("a-") == 2


def test_after_many_that_cannot_be_read_no_other_is_tried(tried):
    some = " ".join(f"$$a_{{{number}}}-$$" for number in range(attempts.MOST_UNREAD - 1))
    assert mathematics.parse(f"so $x$ or {some}")[0] == 7
    tried.clear()
    many = " ".join(f"$$a_{{{number}}}-$$" for number in range(400))
    assert 7 not in mathematics.parse(f"so $x$ or {many}") and len(tried) == attempts.MOST_UNREAD


def test_brackets_nested_too_deep_are_not_parsed(tried):
    assert 7 not in mathematics.parse("so $" + "x^{" * 31 + "2" + "}" * 31 + "$")
    assert tried == []
    assert mathematics.parse("so $" + "x^{" * 30 + "2" + "}" * 30 + "$")[0] == 7
