"""Letters as gold answers; as answers they are in cases/choice.jsonl."""

import pytest

from cgrpo_jax.rewards import choice


@pytest.mark.parametrize(
    ("text", "letter"),
    [("B", "B"), ("(b)", "B"), (r"\text{(J)}", "J"), ("C. Paris", "C"), ("K", None), ("A triangle", None), ("", None)],
)
def test_letters_as_gold_answers(text, letter):
    assert choice.read_choice(text) == letter
