"""What the tests of inference/test_engine_slots share with those that take longer."""

from small_engine import (
    PROMPTS,
    engine,
    sample,
)

LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def decode(tokens):
    return "".join(LETTERS[token] for token in tokens)


def endless(prompts=PROMPTS, **keywords):
    """The texts as they are where nothing ends them but their length."""
    return sample(prompts, make=engine(eos_ids=()), **keywords)


def cut(tokens, stop):
    """Returns how many tokens a text keeps, and whether a stop string ended it."""
    ends = [n for n in range(1, len(tokens) + 1) if any(one in decode(tokens[:n]) for one in stop)]
    return (ends[0], True) if ends else (len(tokens), False)
