"""Where the thinking of a text ends and what it says begins: for graders, judges and verdicts alike."""

from cgrpo_jax.models.hf.thinking_tags import TAGS

MODES = ("after", "anywhere")


def after_thinking(text: str, *, opened: bool = False) -> str:
    r"""What a text says after its thinking: empty where it was cut off within it.

    A thinking part that is opened again ends what is said before it. Takes time linear in the text.

    Args:
      text: what a model wrote, with the tags of `thinking_tags.TAGS`.
      opened: whether its prompt ends in a thinking part, which the text then goes on with.

    Example:
      >>> after_thinking("<think>2+3</think>\n5"), after_thinking("2+3, that is 5?", opened=True)
      ('5', '')
    """
    end = max((at + len(tag) for tag in TAGS.values() if (at := text.rfind(tag)) >= 0), default=-1)
    if end < 0 and opened:
        return ""
    said = text if end < 0 else text[end:].lstrip("\r\n")
    return said[: min((at for tag in TAGS if (at := said.find(tag)) >= 0), default=len(said))]
