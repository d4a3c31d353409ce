"""The tags between which a model thinks, and whether a prompt ends between them."""

import re
from collections.abc import Collection

# What opens a thinking part, and what closes it: of R1, Qwen3 and most others; OpenThinker; Magistral; Seed-OSS.
TAGS = {
    "<think>": "</think>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "[THINK]": "[/THINK]",
    "<seed:think>": "</seed:think>",
}
OPENING = "<think>\n"  # of a text whose template is not known
ALL = (*TAGS, *TAGS.values())


def pairs_of(tags: Collection[str]) -> tuple[str, ...]:
    """Returns tags with what closes, or opens, each.

    Example:
      >>> pairs_of(["</think>"])
      ('<think>', '</think>')
    """
    return tuple(tag for pair in TAGS.items() if any(one in tags for one in pair) for tag in pair)


def opening_of(text: str, tags: Collection[str] = ALL) -> str:
    r"""The end of a text from the tag on that has opened a thinking part and closed none since; "" where there is none.

    Args:
      text: such as a prompt.
      tags: of `ALL`, those that count.

    Example:
      >>> opening_of("<|im_start|>assistant\n<think>\n"), opening_of("<think>\n\n</think>\n\n")
      ('<think>\n', '')
    """
    found = list(re.finditer("|".join(map(re.escape, tags)) or "(?!)", text))
    return text[found[-1].start() :] if found and found[-1].group() in TAGS else ""


def gone_on(text: str, opening: str) -> str:
    r"""Returns a whole text as it goes on after a prompt that ends in `opening`: it thinks there, or has not thought.

    Example:
      >>> gone_on("<think>\n2+3", "<think>\n"), gone_on("5", "<think>\n"), gone_on("<think>\n2+3", "")
      ('2+3', '\n</think>\n\n5', '<think>\n2+3')
    """
    tag = next((tag for tag in TAGS if opening.startswith(tag)), "")
    if tag and text.lstrip().startswith(tag):
        return text.lstrip().removeprefix(tag).removeprefix(opening.removeprefix(tag))
    return without_thought(text, opening)


def without_thought(text: str, opening: str) -> str:
    r"""Returns a text as an answer after a prompt that ends in `opening`: nothing was thought, or what the text thinks.

    Example:
      >>> without_thought("5", "<think>\n"), without_thought("<think>\n2+3</think>\n5", "<think>\n")
      ('\n</think>\n\n5', '2+3</think>\n5')
      >>> without_thought("5", "")
      '5'
    """
    tag, close = next(((tag, close) for tag, close in TAGS.items() if opening.startswith(tag)), ("", ""))
    if tag and text.lstrip().startswith(tag) and close in text:  # it goes on with the thinking that the prompt opened
        return text.lstrip().removeprefix(tag).removeprefix(opening.removeprefix(tag))
    return f"\n{close}\n\n{text}" if close else text
