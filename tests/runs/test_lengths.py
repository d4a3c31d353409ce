"""Lengths that are left at 0 follow from the model's context."""

import pytest

from cgrpo_jax.errors import UserError
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs import lengths, settings, validate
from cgrpo_jax.runs.config import Config

ZERO = dict.fromkeys(lengths.KEYS, 0)


def changed(**values):
    return config_lib.replaced(Config(), ZERO | {key.replace("__", "."): value for key, value in values.items()})


def test_the_papers_context_gives_the_papers_lengths():
    defaults = {key: config_lib.value(Config(), key) for key in lengths.KEYS}
    assert lengths.chosen(changed(), context=16384, critic_context=16384) == defaults
    assert list(defaults.values()) == [2048, 6144, 1024, 9216, 10240]


def test_what_is_given_stays_and_the_others_follow():
    config = changed(max_prompt_length=100, refine__max_prompt_length=1800)
    found = lengths.chosen(config, context=2048, critic_context=512)
    assert found == {"max_response_length": 248, "critic.max_length": 32, "critic.max_prompt_length": 480}
    filled, said = lengths.filled(config, context=2048, critic_context=512)
    assert filled.max_response_length == 248 and filled.max_prompt_length == 100
    assert said == (
        "lengths from the model's context of 2048 tokens: max_response_length 248, critic.max_length 32, "
        "critic.max_prompt_length 480"
    )


def test_nothing_is_chosen_where_all_are_given():
    assert lengths.filled(Config(), context=99, critic_context=99) == (Config(), "")
    assert settings.with_lengths(Config()) == Config()  # nor is a model looked for


@pytest.mark.parametrize("context", [16, 128, 256, 2048, 4096, 32768, 131072])
def test_every_stage_fits_every_context(context):
    found = lengths.chosen(changed(), context=context, critic_context=context)
    assert all(value >= 1 for value in found.values())
    assert found["max_prompt_length"] + found["max_response_length"] <= context
    assert found["refine.max_prompt_length"] + found["max_response_length"] <= context
    assert found["critic.max_prompt_length"] + found["critic.max_length"] <= context


def test_a_run_reads_the_context_of_its_model(capsys):
    sizes = dict(num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=2, mlp_dim=8, max_context=256)
    config = changed(model__tokenizer="arithmetic", **{f"model__{name}": value for name, value in sizes.items()})
    validate.check(config)
    filled, said = settings.with_lengths(config), capsys.readouterr().err
    assert (filled.max_prompt_length, filled.max_response_length, filled.refine.max_prompt_length) == (32, 96, 160)
    assert said.startswith("lengths from the model's context of 256 tokens: max_prompt_length 32, ")
    with pytest.raises(UserError, match="packing.length 64 does not hold the longest prompt and response"):
        settings.with_lengths(config_lib.replaced(config, {"packing.length": 64}))
    with pytest.raises(UserError, match="max_prompt_length -1 is negative"):
        validate.check(changed(max_prompt_length=-1))


def test_what_does_not_train_may_have_what_training_refuses():
    sizes = dict(num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=2, mlp_dim=8, max_context=256)
    given = {f"model__{name}": value for name, value in sizes.items()}
    config = changed(model__tokenizer="arithmetic", sampling__top_p=0.9, **given)
    validate.check(config, trains=False)
    assert settings.with_lengths(config, trains=False).max_response_length == 96
    with pytest.raises(UserError, match="sampling.top_p below 1"):
        settings.with_lengths(config)
