"""What takes longer than a unit test may, of tests/planning/test_plan.py."""

import dataclasses
import math
import re

import jax
import plan_cases
import planned
import pytest
import tiny_run
from plan_cases import ADAM, CACHE, SAMPLING, TRAINED, arrays

from cgrpo_jax import sharding, train
from cgrpo_jax.inference import slots, weights
from cgrpo_jax.planning import planner as planner_lib
from cgrpo_jax.planning import programs
from cgrpo_jax.runs import build_model
from cgrpo_jax.runs.settings import run_settings
from cgrpo_jax.runs.variants import Variants
from cgrpo_jax.training import optimizer, scoring, train_step

model = plan_cases.model  # the fixture


def statics(keywords):
    """What a program is compiled for, but the optimiser's object and the tokens that end a row."""
    kept = {name: value for name, value in keywords.items() if name != "optimizer"}
    if isinstance(kept.get("settings"), slots.EngineSettings):
        kept["settings"] = dataclasses.replace(kept["settings"], eos_ids=())
    return kept


def same_but_for_widths(planned_keywords, keywords):
    """Whether two programs are one but for the tokens that they take at once: prompts and their copies have widths.

    The reference, which is laid out once and not split, counts as the weights that sample: no TPU splits these.
    """
    one, other = (
        {name: value for name, value in statics(kw).items() if name not in ("continued", "width", "split")}
        for kw in (planned_keywords, keywords)
    )
    return one == other


def size_of(shapes):
    return sum(math.prod(shape) for shape, _ in shapes)


@pytest.mark.parametrize(
    "changes", [{"objective.kl_coef": 0.1, "lora.rank": 0}, {"objective.kl_coef": 0.1, "lora.rank": 2}]
)
def test_programs_are_those_that_training_calls(tmp_path, monkeypatch, changes):
    # A model drawn at random solves nothing, so that all is refined; with KL no row is dropped.
    small = {"num_iterations": 1, "data.num_eval": 8, "mesh.fsdp": 2, "mesh.tensor": 2, "objective.old_logp": "trainer"}
    config = tiny_run.config(small | changes)
    mesh = sharding.make_mesh(fsdp=2, tensor=2, devices=jax.devices()[:4])
    monkeypatch.setattr(build_model, "make_mesh", lambda config: mesh)
    seen = []

    def watched(function):
        def call(*args, **keywords):
            # Before the call: what is donated is gone after it.
            where = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(args)]
            seen.append((function, arrays(args), where, statics(keywords)))
            return function(*args, **keywords)

        return call

    for module, name in (
        (slots, "prefill"),
        (slots, "share"),
        (slots, "tick"),
        (weights, "lay_out"),
        (train_step, "accumulate"),
        (optimizer, "apply"),
        (scoring, "score"),
    ):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    train.main(config, str(tmp_path / "run"))
    monkeypatch.undo()

    calls = programs.of(run_settings(config, mesh)).calls
    for call in calls:
        alike = [
            where
            for function, shapes, where, keywords in seen
            if function is call.function and shapes == arrays(call.args) and keywords == statics(call.keywords)
        ]
        assert alike, f"training does not call {call.name} so"
        for found, leaf in zip(alike[0], jax.tree.leaves(call.args), strict=True):
            assert found is None or found.is_equivalent_to(leaf.sharding, len(leaf.shape))
    for function, shapes, _, keywords in seen:
        planned_for = [
            call for call in calls if call.function is function and same_but_for_widths(call.keywords, keywords)
        ]
        assert planned_for, f"no plan has {function.__name__} with {keywords}"
        assert size_of(shapes) <= max(size_of(arrays(call.args)) for call in planned_for)
    assert {function for function, *_ in seen} == {call.function for call in calls}


def test_what_lies_beside_a_program_counts_once(model, monkeypatch):
    planned.pretend(monkeypatch)
    found = planner_lib.Planner(Variants(planned.config(model, **{"objective.kl_coef": 0.1})), planned.NAME)
    plan_, args = found.plan(), {}
    for call in found.programs.calls:
        args.setdefault(call.name, []).append(planned.size(call.args))
    reference = SAMPLING
    generating = TRAINED + ADAM + reference
    prefills = [args[name][0] for name in ("prefill", "critique_prefill", "refine_prefill", "continue")]
    assert max(args["share"][0], SAMPLING) < min(prefills)  # which copies beside the weights, not with them
    assert plan_.phases == {
        "prefill": max(2 * max(prefills), 2 * args["share"][0] + SAMPLING) + generating,
        "decode": 2 * args["decode"][0] + generating,
        # The weights that sampled are let go of before.
        "reference": 2 * args["reference"][0] + TRAINED + ADAM,
        "reshard": 2 * args["reshard"][0] + ADAM + reference,
        "update": max(2 * args["update"][0] + ADAM, 2 * args["update"][1]) + reference,
    }


def test_a_frozen_critic_lies_beside_the_policy(model, tmp_path, monkeypatch):
    planned.pretend(monkeypatch)
    critic = planned.describe(tmp_path / "critic", num_hidden_layers=3, hidden_size=16)
    found = planner_lib.Planner(
        Variants(planned.config(model, **{"critic.kind": "folder", "critic.folder": critic})), planned.NAME
    )
    plan_, args = found.plan(), {call.name: planned.size(call.args) for call in found.programs.calls}
    buffers = {name: buffer.bytes for name, buffer in found.programs.buffers.items()}
    largest = max(args[name] for name in ("critic_prefill", "critic_continue", "critic_decode"))
    assert plan_.phases["critique"] == 2 * largest + TRAINED + ADAM + SAMPLING + CACHE
    assert plan_.phases["decode"] == 2 * args["decode"] + TRAINED + ADAM + buffers["critic"] + buffers["critic_slots"]


def test_fewer_rows_at_once_where_the_cache_is_too_large(model, monkeypatch):
    big = {
        "refine.kind": "none",
        "engine.num_slots": 64,
        "questions_per_iteration": 64,
        "max_response_length": 1024,
        "packing.rows": 1,
    }
    planned.pretend(monkeypatch)
    config = planned.config(model, **big)
    peak = planner_lib.Planner(Variants(config), planned.NAME).plan().phases
    assert peak["decode"] == max(peak.values())
    planned.pretend(monkeypatch, hbm_bytes=peak["decode"] // 2)
    planner = planner_lib.Planner(Variants(config), planned.NAME)
    found = planner.plan()
    assert not found.fits and found.phases["decode"] == peak["decode"]
    rows = int(re.fullmatch(r"--config\.engine\.num_slots=(\d+)", found.suggestion)[1])
    fits = [
        planner_lib.Planner(Variants(planned.config(model, **big | {"engine.num_slots": n})), planned.NAME).plan().fits
        for n in (rows, 2 * rows)
    ]
    assert fits == [True, False]


def test_slots_that_a_memory_holds(model, monkeypatch):
    """At most as many as an iteration has texts; fewer are suggested where they do not fit."""
    planned.pretend(monkeypatch)
    wanted = {
        "refine.kind": "none",
        "engine.num_slots": 0,
        "questions_per_iteration": 64,
        "max_response_length": 1024,
        "packing.rows": 1,
    }
    wanted |= {"packing.slots": 8}  # else they take more than the slots
    programs = planner_lib.Planner(
        Variants(planned.config(model, **wanted, **{"cache.gib": 0.01})), planned.NAME
    ).programs
    (cache,) = [buffer for buffer in programs.buffers.values() if buffer.kind == "kv_cache"]
    one = cache.bytes / programs.num_slots
    assert 1 < programs.num_slots == 0.01 * 2**30 // one
    texts = 64 * planned.config(model, **wanted, **{"cache.gib": 1.0}).num_responses
    programs = planner_lib.Planner(
        Variants(planned.config(model, **wanted, **{"cache.gib": 10.0})), planned.NAME
    ).programs
    assert programs.num_slots == texts // 2  # of each of two data groups
    peak = max(
        planner_lib.Planner(Variants(planned.config(model, **wanted, **{"cache.gib": 0.01})), planned.NAME)
        .plan()
        .phases.values()
    )
    planned.pretend(monkeypatch, hbm_bytes=peak // 2)
    found = planner_lib.Planner(Variants(planned.config(model, **wanted, **{"cache.gib": 0.01})), planned.NAME).plan()
    assert re.fullmatch(r"--config\.engine\.num_slots=\d+ --config\.cache\.gib=0\.0", found.suggestion)


def test_larger_tensor_groups_where_the_weights_are_too_large(model, monkeypatch):
    small = {
        "refine.kind": "none",
        "engine.num_slots": 1,
        "packing.rows": 1,
        "num_responses": 1,
        "mesh.fsdp": 4,
        "mesh.tensor": 1,
    }
    small["compute.dtype"] = "float32"  # so that generating takes more than updating
    planned.pretend(monkeypatch)
    phases = [
        planner_lib.Planner(Variants(planned.config(model, **small | mesh)), planned.NAME).plan().phases
        for mesh in ({}, {"mesh.fsdp": 2, "mesh.tensor": 2})
    ]
    between = (max(phases[0].values()) + max(phases[1].values())) // 2
    assert max(phases[1].values()) < between
    planned.pretend(monkeypatch, hbm_bytes=between)
    found = planner_lib.Planner(Variants(planned.config(model, **small)), planned.NAME).plan()
    assert not found.fits
    assert found.suggestion == "--config.mesh.tensor=2 --config.mesh.fsdp=2"


def test_kinds_add_up_to_what_a_program_needs(model, monkeypatch):
    planned.pretend(monkeypatch)
    found = planner_lib.Planner(Variants(planned.config(model)), planned.NAME).plan()
    kinds = {one.name: one.hbm_bytes for one in found.programs}
    assert kinds["decode"]["weights"] == kinds["share"]["weights"] == TRAINED + SAMPLING
    assert kinds["decode"]["optimizer"] == kinds["update"]["optimizer"] == ADAM
    assert kinds["refine_prefill"]["kv_cache"] == kinds["decode"]["kv_cache"] == CACHE
    assert kinds["reshard"]["kv_cache"] == kinds["update"]["kv_cache"] == 0
    assert kinds["reshard"]["weights"] == TRAINED + SAMPLING
    assert sum(kinds["decode"].values()) == found.phases["decode"]
