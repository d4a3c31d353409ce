"""What other libraries call the keys: each name leads to a key that there is."""

import pytest

from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import keys, old_keys, other_names

KNOWN = [name for name, _, _ in keys.items(config_lib.Config())]


def test_the_table_names_keys_that_there_are_and_none_that_is_one_itself():
    assert set(other_names.KEYS.values()) <= set(KNOWN)
    assert not (other_names.KEYS.keys() & {*KNOWN, *old_keys.RENAMED})


@pytest.mark.parametrize("name, key", other_names.KEYS.items())
def test_a_name_of_another_library_is_understood_also_within_its_own_sections(name, key):
    for given in (name, f"trainer.{name}"):
        assert other_names.meant(given, KNOWN) == other_names.closest(given, KNOWN) == key


@pytest.mark.parametrize(
    "name, key",
    [
        ("temperature", "sampling.temperature"),  # which several sections have
        ("sampling.temperature_", "sampling.temperature"),
        ("temperature_", "sampling.temperature"),
        ("template_arguments", "prompts.template_arguments"),
        ("num_generation", "num_responses"),
        ("optimiser.learning_rate", "optimizer.learning_rate"),
        ("zzz", ""),
    ],
)
def test_what_a_misspelt_name_may_mean(name, key):
    assert other_names.closest(name, KNOWN) == key


def test_a_name_that_several_keys_have_means_none_for_certain():
    assert other_names.meant("folder", KNOWN) == "" and other_names.meant("nope", KNOWN) == ""
