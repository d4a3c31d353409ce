"""What has been sampled in a slot, read from the reports of ticks; stop strings cut it where they end."""

import jax.numpy as jnp
import numpy as np
import pytest

from cgrpo_jax.inference.slot_texts import SlotTexts
from cgrpo_jax.inference.slots import Report

LETTERS = "abcdefghij"


def report(tokens_SC, sampled, live):
    """The report of a tick of two slots that sampled these tokens; the rest of its rows is 0."""
    tokens_CS = np.zeros((4, 2), np.int32)
    for slot, tokens in enumerate(tokens_SC):
        tokens_CS[: len(tokens), slot] = tokens
    steps = jnp.int32(max(map(len, tokens_SC)))
    return Report(tokens_CS, -0.5 * tokens_CS.astype(np.float32), np.array(sampled), np.array(live), steps)


def decode(tokens):
    return "".join(LETTERS[token] for token in tokens)


def texts(**options):
    made = SlotTexts(2, eos_ids=(9,), decode=decode, **options)
    for slot in range(2):
        made.begin(slot)
    return made


def test_a_text_is_what_all_ticks_have_sampled_in_its_slot():
    made = texts()
    first = report([[1, 2, 3], [4, 9]], sampled=[3, 2], live=[True, False])
    assert made.read(0, first) == (3, None)
    number, ended = made.read(1, first)
    assert number == 2 and ended.token_ids.tolist() == [4, 9] and ended.logp.tolist() == [-2.0, -4.5]
    assert not ended.truncated  # it ends with an end-of-turn token
    made.begin(1)
    second = report([[5], [6, 7, 8]], sampled=[4, 3], live=[False, True])
    number, ended = made.read(0, second)
    assert number == 1 and ended.token_ids.tolist() == [1, 2, 3, 5] and ended.truncated
    assert made.read(1, second) == (3, None)  # of the text that began in its place
    assert not made.take_stopped().any()


def test_a_stop_string_ends_a_text_also_over_two_ticks():
    made = texts(stop=["de"])
    assert made.read(0, report([[1, 2, 3], []], sampled=[3, 0], live=[True, True])) == (3, None)
    number, ended = made.read(0, report([[4, 5, 6], []], sampled=[6, 0], live=[True, True]))
    assert number == 1 and decode(ended.token_ids) == "bcde" and not ended.truncated
    assert made.take_stopped().tolist() == [True, False]  # the devices would go on with it
    assert made.take_stopped().tolist() == [False, False]


def test_a_text_that_has_ended_by_itself_need_not_be_stopped():
    made = texts(stop=["c"])
    number, ended = made.read(0, report([[1, 2, 9], []], sampled=[3, 0], live=[False, True]))
    assert number == 2 and decode(ended.token_ids) == "bc" and not ended.truncated
    assert not made.take_stopped().any()


def test_stop_strings_need_a_decoder():
    with pytest.raises(ValueError, match=r"stop strings \['x'\] need `decode`; give"):
        SlotTexts(2, eos_ids=(), stop=["x"])
