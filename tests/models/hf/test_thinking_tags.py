import pytest

from cgrpo_jax.models.hf.thinking_tags import without_thought


@pytest.mark.parametrize(
    "text, opening, answers",
    [
        ("5", "", "5"),
        ("<think>2+3</think>5", "", "<think>2+3</think>5"),  # nothing was opened, so the tags are the text's own
        ("5", "<think>\n", "\n</think>\n\n5"),
        ("5", "[THINK]", "\n[/THINK]\n\n5"),
        ("<think>\n2+3</think>\n5", "<think>\n", "2+3</think>\n5"),
        (" <think>\n2+3</think>\n5", "<think>", "\n2+3</think>\n5"),
        # Never closed, or in another model's tags: it stays a text that was thought by no one.
        ("<think>5", "<think>", "\n</think>\n\n<think>5"),
        ("[THINK]2+3[/THINK]5", "<think>", "\n</think>\n\n[THINK]2+3[/THINK]5"),
    ],
)
def test_a_solution_goes_on_with_what_the_prompt_has_opened(text, opening, answers):
    assert without_thought(text, opening) == answers
