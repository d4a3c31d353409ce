"""What a run is made with, decided without a weight; and what a plan changes of it."""

import types

import numpy as np
import planned
import pytest
import tiny_run

from cgrpo_jax import sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.sampling import Sampling
from cgrpo_jax.runs import build_model, stages
from cgrpo_jax.runs.settings import run_settings
from cgrpo_jax.runs.slot_budget import overlaps
from cgrpo_jax.runs.variants import Variants


def settings(changes=None, /, *, make=stages.of_training, **more):
    config = tiny_run.config(changes, **more)
    return run_settings(config, sharding.one_device(), stages=make(config))


def test_a_run_is_built_from_its_settings():
    config = tiny_run.config({"cache.dtype": "int8", "engine.prompt_bucket": 32})
    decided = run_settings(config, sharding.one_device())
    model = build_model.load_policy(config, decided)
    assert (model.config, model.mesh, model.dtype) == (decided.policy, decided.mesh, decided.dtype)
    engine, slots = model.engine, decided.slots
    assert (engine.num_slots, engine.length, engine.widths[-1]) == (slots.num_slots, slots.length, slots.longest_prompt)
    assert engine.cache_dtype == slots.dtype == "int8"


@pytest.mark.parametrize(
    "value, on_cpus, elsewhere", [("auto", False, True), ("on", True, True), ("off", False, False)]
)
def test_engines_dispatch_ahead_where_the_devices_are_no_cpus_and_know_what_ends(value, on_cpus, elsewhere):
    config = tiny_run.config({"engine.overlap": value})
    by_strings = tiny_run.config({"engine.overlap": value, "sampling.stop": ("\n",)})
    for platform, wanted in (("cpu", on_cpus), ("gpu", elsewhere), ("tpu", elsewhere)):
        mesh = types.SimpleNamespace(devices=np.array([types.SimpleNamespace(platform=platform)]))
        assert overlaps(config, mesh) is wanted
        assert overlaps(by_strings, mesh) is (value == "on")
    assert run_settings(config, sharding.one_device()).overlap is on_cpus


def test_slots_are_those_of_the_longest_stage():
    assert (settings({"refine.kind": "none"}).slots.longest_prompt, settings({"refine.kind": "none"}).slots.length) == (
        16,
        32,
    )
    assert (settings().slots.longest_prompt, settings().slots.length) == (48, 64)


def test_memory_holds_so_many_slots_and_not_more_than_texts():
    one = settings({"engine.num_slots": 1}).slots.bytes
    gib = lambda slots: {"engine.num_slots": 0, "cache.gib": slots * one / 2**30}  # noqa: E731
    assert settings(gib(3.5)).slots.num_slots == 3
    assert settings(gib(1000)).slots.num_slots == 16  # 4 questions, 4 responses
    with pytest.raises(UserError, match="does not hold one slot of 64 tokens"):
        settings(gib(0.5))
    # What learns from rows has no iterations of questions and responses: their numbers are not read.
    rows = lambda **more: settings(gib(40), make=stages.of_finetuning, **more).slots.num_slots  # noqa: E731
    assert rows() == rows(num_responses=2) >= 40


def test_a_cache_with_pages_is_asked_for():
    paged = lambda **more: settings({"cache.kind": "paged", "cache.page_size": 8, **more})  # noqa: E731
    one = paged(**{"engine.num_slots": 5}).slots
    assert one.pages == Pages(1 + 5 * 64 // 8, 8, tokens=512, prompts=8, kernel=False) and one.num_slots == 5
    page = one.bytes / one.pages.number
    gib = lambda pages, slots=0: {"engine.num_slots": slots, "cache.gib": (pages + 0.5) * page / 2**30}  # noqa: E731
    held = paged(**gib(17)).slots  # 128 tokens, of which each text takes an eighth of the longest, 8
    assert (held.pages and held.pages.number, held.num_slots, held.bytes) == (17, 16, 17 * page)
    assert paged(**gib(1000)).slots.num_slots == 16  # 4 questions, 4 responses
    assert paged(**gib(17, 3)).slots.num_slots == 3
    with pytest.raises(UserError, match="does not hold the pages of one text of 64 tokens, which take"):
        paged(**gib(8))
    with pytest.raises(UserError, match='cache.kind "paged" does not do here: attention over pages has no scale'):
        paged(**{"cache.dtype": "int8"})
    assert settings().slots.pages is None
    config = tiny_run.config({"cache.kind": "paged"})
    model = build_model.load_policy(config, decided := run_settings(config, sharding.one_device()))
    assert model.engine.pages == decided.slots.pages is not None


def test_the_method_is_that_of_the_stages():
    plain = settings({"refine.kind": "none"})
    assert plain.method.refine == "none"
    assert (
        settings({"refine.kind": "none", "critique.kind": "cot"}, make=stages.of_test_time_refinement).method.refine
        == "policy"
    )
    assert plain.learner.adapters is None and settings({"lora.rank": 2}).learner.adapters.rank == 2
    assert not plain.learner.has_reference and settings({"objective.kl_coef": 0.1}).learner.has_reference


def test_an_evaluation_without_samples_is_greedy_alone():
    assert [one.temperature for one in settings({"eval.k": (1,)}).evaluation_sampling] == [0.0]
    assert [one.temperature for one in settings().evaluation_sampling] == [0.0, 0.6]
    assert settings({"data.num_eval": 0}).evaluation_sampling == ()


def test_variants_need_less_memory_step_by_step(tmp_path):
    model = planned.describe(tmp_path / "model")
    variants = Variants(
        planned.config(model, **{"mesh.fsdp": 0, "mesh.tensor": 1, "compute.remat": "mlp"}, **{"engine.num_slots": 4})
    )
    make_mesh = lambda **sizes: sharding.one_device()  # noqa: E731
    slots = [variants.settings(make_mesh, changes).slots.num_slots for changes in variants.fewer_slots(4)]
    assert slots == [4, 2, 1]
    batches = [variants.settings(make_mesh, changes).learner for changes in variants.smaller_batches()]
    assert [(one.remat, one.shape.num_token_rows) for one in batches] == [
        ("mlp", 2),
        ("mlp", 1),
        ("layer", 2),
        ("layer", 1),
    ]
    asked = []

    def watched(**sizes):
        asked.append(sizes["tensor"])
        return sharding.one_device()

    for changes in variants.meshes(4):
        variants.settings(watched, changes)
    assert asked == [1, 2, 4]


@pytest.mark.parametrize("gen_tensor, kept", [(0, [0, 0, 0, 0]), (2, [2, 2, 0, 0]), (4, [4, 4, 4, 0])])
def test_larger_tensor_groups_leave_those_of_generation_where_these_are_of_several(gen_tensor, kept, tmp_path):
    model = planned.describe(tmp_path / "model")
    config = planned.config(model, **{"mesh.fsdp": 8, "mesh.tensor": 1, "mesh.gen_tensor": gen_tensor})
    variants = Variants(config)
    found = [variants.settings(sharding.make_mesh, changes) for changes in variants.meshes(8)]
    assert [one.mesh.shape["tensor"] for one in found] == [1, 2, 4, 8]
    assert [one.generation_mesh.shape["tensor"] for one in found] == [
        size or own for size, own in zip(kept, [1, 2, 4, 8], strict=True)
    ]


def test_a_critic_samples_as_the_policy_unless_its_keys_say_otherwise():
    cot = {"critique.kind": "cot", "sampling.top_k": 5, "objective.old_logp": "trainer"}
    same = settings(cot)
    assert same.critic_sampling == same.sampling and same.policy_samplings[0] == same.sampling
    assert same.greedy_critic_sampling.temperature == 0
    apart = settings(cot | {"critic.temperature": 0.6, "critic.top_p": 0.95})
    assert apart.critic_sampling == Sampling(0.6, 0.95, 5)
    assert apart.greedy_critic_sampling == Sampling(0.6, 0.95)
    assert apart.policy_samplings[0] == (apart.sampling, apart.critic_sampling)
    assert settings(cot | {"critic.temperature": 0.0}).critic_sampling.temperature == 0
    # Where the policy writes no critique, its engine has nothing to draw in another way.
    rule = settings(cot | {"critique.kind": "indicative", "critic.temperature": 0.6})
    assert rule.policy_samplings[0] == rule.sampling
