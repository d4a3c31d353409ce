"""Planning without a compiler: which programs a run has, what lies beside them, what is reported."""

import ast
import dataclasses
import inspect
import json
import re

import jax
import plan_cases
import planned
import pytest
from plan_cases import ADAM, CACHE, SAMPLING, TRAINED, arrays

from cgrpo_jax import plan, sharding
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import weights
from cgrpo_jax.models.kernels import cost, logprobs_pallas
from cgrpo_jax.planning import costs, programs
from cgrpo_jax.planning import planner as planner_lib
from cgrpo_jax.records import TrainBatch
from cgrpo_jax.runs import build_model, cli
from cgrpo_jax.runs import config as config_lib
from cgrpo_jax.runs.settings import run_settings
from cgrpo_jax.runs.variants import Variants

model = plan_cases.model  # the fixture


def programs_of(config):
    """Returns the programs on a mesh of 2 (fsdp) x 2 (tensor), with stacked weights, as a TPU has them."""
    mesh = sharding.make_mesh(replica=1, fsdp=2, tensor=2, devices=jax.devices()[:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "splits", lambda mesh: False)
        return programs.of(run_settings(config, mesh))


# --- the programs -------------------------------------------------------------------------------------------------


def test_a_plan_makes_no_program_of_its_own():
    """What is planned comes from the builders of a real run: here is no array's shape, and no static argument."""
    tree = ast.parse(inspect.getsource(programs))
    called = {
        getattr(node.func, "attr", getattr(node.func, "id", ""))
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }
    assert not called & {
        "Program",
        "ShapeDtypeStruct",
        "NamedSharding",
        "EngineSettings",
        "Orders",
        "jit",
        "eval_shape",
    }
    assert {"make_engine", "Learner", "state_shapes", "generation_program"} <= called


def test_stages_have_the_sizes_of_their_calls(model):
    found = {call.name: call for call in programs_of(planned.config(model)).calls}
    assert list(found) == [
        "prefill",
        "critique_prefill",
        "refine_prefill",
        "continue",
        "share",
        "decode",
        "reshard",
        "update",
    ]
    # Two data groups, 4 prompts of each at once, without their last tokens: 39 and 59 in 64, 99 in the longest, 100.
    prefills = [found[name] for name in ("prefill", "critique_prefill", "refine_prefill")]
    assert [call.args[2].shape for call in prefills] == [(8, 64), (8, 64), (8, 100)]
    # 8 questions; 24 responses, each criticised; 24 critiques, each followed.
    assert [call.per_iteration for call in prefills] == [1, 3, 3]
    assert found["continue"].args[2].shape == (2, 64) and found["continue"].keywords["continued"]
    assert found["share"].args[1].shape == (16,) and found["share"].keywords["width"] == 100
    # 8 slots of each group, 64 tokens a tick; 100 + 16 positions are less than a block.
    assert found["decode"].trips == (64, 1)
    assert found["decode"].per_iteration == -(-24 * (16 + 12 + 16) // (2 * 8 * 64))
    # 4 questions of 4 rows an update, 2 token rows in each of 2 data groups.
    accumulate, apply = [call for call in programs_of(planned.config(model)).calls if call.name == "update"]
    assert (accumulate.times, accumulate.per_iteration, apply.times, apply.per_iteration) == (1, 2, 1, 2)
    assert accumulate.repeated == 4 and accumulate.trips == (4,)
    assert programs_of(planned.config(model)).sampled_tokens == 24 * (16 + 12 + 16)


def test_refinements_of_one_critique_share_its_prompt(model):
    for changes in ({"critique.num_per_response": 2}, {"critique.num_per_response": 2, "refine.per_critique": 2}):
        found = programs_of(planned.config(model, **changes))
        times = {call.name: call.per_iteration for call in found.calls}
        assert (times["critique_prefill"], times["refine_prefill"]) == (6, 6)
        refinements = 48 * changes.get("refine.per_critique", 1)
        assert found.sampled_tokens == 24 * 16 + 48 * 12 + refinements * 16


def test_an_evaluation_is_planned_and_no_part_of_an_iteration(model):
    usual, held_out = planned.config(model), planned.config(model, **{"data.eval": "questions.jsonl"})
    without, found = programs_of(usual), programs_of(held_out)
    calls = {call.name: call for call in found.calls if call.name.startswith("eval_")}
    # The prompts are those of an iteration; the sampling is another: greedy, and with samples.
    assert list(calls) == ["eval_decode", "eval_sample_decode"]
    usually = next(call for call in found.calls if call.name == "decode")
    for call in calls.values():
        assert arrays(call.args) == arrays(usually.args) and call.keywords["settings"] == usually.keywords["settings"]
    samplings = [call.keywords["sampling"] for call in (usually, *calls.values())]
    assert len(set(samplings)) == 3 and samplings[1].temperature == 0
    assert {call.phase for call in calls.values()} == {"decode"}
    assert not any(call.per_iteration for call in calls.values())
    assert found.sampled_tokens == without.sampled_tokens
    assert {call.name for call in found.calls} - calls.keys() == {call.name for call in without.calls}


@pytest.mark.parametrize(
    ("changes", "more", "less"),
    [
        ({"refine.kind": "none"}, set(), {"critique_prefill", "refine_prefill"}),
        ({"refine.kind": "none", "critique.when": "all"}, set(), {"refine_prefill"}),
        ({"critique.kind": "indicative"}, set(), {"critique_prefill"}),
        (
            {"critic.kind": "endpoint", "critic.endpoint.url": "http://localhost:1/v1", "critic.endpoint.model": "m"},
            set(),
            {"critique_prefill"},
        ),
        ({"objective.kl_coef": 0.1}, {"reference"}, set()),
        ({"objective.old_logp": "trainer"}, {"old_logp"}, set()),
        ({"distil.kind": "added"}, {"top_tokens", "teacher"}, set()),
        ({"compute.dtype": "float32", "mesh.fsdp": 1, "mesh.tensor": 4}, set(), {"reshard"}),
    ],
)
def test_programs_depend_on_the_method(model, changes, more, less, monkeypatch):
    planned.pretend(monkeypatch)
    usual = {call.name for call in planner_lib.Planner(Variants(planned.config(model)), planned.NAME).programs.calls}
    config = planned.config(model, **changes)
    assert {c.name for c in planner_lib.Planner(Variants(config), planned.NAME).programs.calls} == (usual | more) - less


def test_a_frozen_critic_has_programs_of_its_own(model, tmp_path):
    critic = planned.describe(tmp_path / "critic", num_hidden_layers=3, hidden_size=16)
    found = {
        call.name: call
        for call in programs_of(planned.config(model, **{"critic.kind": "folder", "critic.folder": critic})).calls
    }
    assert "critique_prefill" not in found
    assert found["critic_prefill"].args[0]["layers"]["q"].shape == (3, 16, 4, 8)
    # Two groups of 8 slots with room for a prompt of 60 and 12 more.
    assert found["critic_decode"].args[1].cache["k"].shape == (3, 16, 2, 72, 8)
    assert {found[name].phase for name in ("critic_prefill", "critic_continue", "critic_share", "critic_decode")} == {
        "critique"
    }
    assert found["critic_prefill"].per_iteration == 3
    assert found["critic_decode"].per_iteration == 1 and found["decode"].per_iteration == 1
    assert "critic" in found["decode"].beside and "critic" in found["update"].beside
    assert "generation" in found["critic_decode"].beside
    # Both engines are at work at once.
    assert "critic_slots" in found["decode"].beside and "slots" in found["critic_decode"].beside
    assert not {"slots", "critic_slots"} & {*found["update"].beside, *found["reshard"].beside}


def test_a_frozen_refiner_has_programs_of_its_own(model, tmp_path):
    refiner = planned.describe(tmp_path / "refiner", num_hidden_layers=3, hidden_size=16)
    found = {call.name: call for call in programs_of(planned.config(model, **{"refiner.folder": refiner})).calls}
    names = ("refiner_prefill", "refiner_continue", "refiner_share", "refiner_decode")
    assert {found[name].phase for name in names} == {"refinement"} and "refine_prefill" not in found
    assert found["refiner_prefill"].args[0]["layers"]["q"].shape == (3, 16, 4, 8)
    assert {"refiner", "refiner_slots"} < {*found["decode"].beside} and "slots" in found["refiner_decode"].beside
    assert "refiner" in found["update"].beside and "refiner_slots" not in found["update"].beside


def test_an_average_lies_beside_the_weights_and_scores_longer_rows(model):
    changes = {"distil.kind": "added", "distil.teacher": "average", "distil.top_tokens": 7}
    programs = programs_of(planned.config(model, **changes))
    found, run = {call.name: call for call in programs.calls}, planned.config(model)
    gradients, step = (call for call in programs.calls if call.name == "update")
    assert programs.buffers["average"].bytes == TRAINED - 4
    assert "average" in gradients.beside and "average" in step.own and "average" not in step.beside
    assert found["teacher"].own == ("average",) and found["top_tokens"].own == ("trained",)
    (batch,) = found["teacher"].program.inputs
    assert batch.tokens_RS.shape[1] == run.refine.max_prompt_length + run.max_response_length
    assert batch.top_ids_RSC.shape == (*batch.tokens_RS.shape, 7)
    assert found["top_tokens"].program.inputs[0].top_ids_RSC is None


# --- memory -------------------------------------------------------------------------------------------------------


SLOTS = CACHE + 8 * (4 * 4 + 2 * 4 + 1)


def test_buffers_are_those_counted_by_hand(model):
    found = {name: buffer.bytes for name, buffer in programs_of(planned.config(model)).buffers.items()}
    assert found == {
        "trained": TRAINED,
        "optimizer": ADAM,
        "generation": SAMPLING,
        "gradients": TRAINED - 4,
        "slots": CACHE,
    }


def test_an_offloaded_state_lies_beside_nothing(model):
    """It is among the arguments of the step alone, in memory of the hosts."""
    found = programs_of(planned.config(model, **{"optimizer.offload": True}))
    assert {name: buffer.bytes for name, buffer in found.buffers.items()} == {
        "trained": TRAINED,
        "generation": SAMPLING,
        "gradients": TRAINED - 4,
        "slots": CACHE,
    }
    assert not any("optimizer" in call.own + call.beside for call in found.calls)
    (step,) = (call for call in found.calls if call.function.__name__ == "apply")
    moments = [leaf for leaf in jax.tree.leaves(step.args[0].opt_state) if leaf.ndim]
    assert {leaf.sharding.memory_kind for leaf in moments} == {"pinned_host"}
    assert planned.size(moments) == ADAM - 8


def test_adapters_have_a_small_state_and_a_base(model):
    found = {
        name: buffer.bytes for name, buffer in programs_of(planned.config(model, **{"lora.rank": 2})).buffers.items()
    }
    assert found["base"] == TRAINED - 4
    assert found["trained"] < found["base"] / 4 and found["optimizer"] < found["base"] / 2
    assert found["generation"] == SAMPLING
    calls = programs_of(planned.config(model, **{"lora.rank": 2, "objective.kl_coef": 0.1})).calls
    # Only sampling and the step along the gradient do not read the base.
    assert {call.function.__name__ for call in calls if "base" in call.own} == {"score", "lay_out", "accumulate"}
    assert {call.function.__name__ for call in calls if "base" in call.beside} == {
        "prefill",
        "share",
        "tick",
        "apply",
    }


# --- costs --------------------------------------------------------------------------------------------------------


def test_costs_are_those_of_the_whole_depth(model, monkeypatch):
    # What stands for a compiled program costs a FLOP a byte of its arguments, which is linear in the layers.
    planned.pretend(monkeypatch)
    planner = planner_lib.Planner(Variants(planned.config(model)), planned.NAME)
    found = {one.name: one for one in planner.plan().programs}
    calls = [call for call in planner.programs.calls if call.name != "update" and call.per_iteration]
    assert {call.name for call in calls} == found.keys() - {"update", "continue", "share"}
    shallow = [programs.of(planner._shallow(depth)).calls for depth in (2, 3)]
    layer = {low.name: planned.size(high.args) - planned.size(low.args) for low, high in zip(*shallow, strict=True)}
    for call in calls:
        # Of a prefill the program itself is taken to be one layer and what is around the layers.
        more = 4 * layer[call.name] if "prefill" in call.name else 0
        assert found[call.name].cost.flops == pytest.approx(planned.size(call.args) + more), call.name
    accumulate, apply = (planned.size(call.args) for call in planner.programs.calls if call.name == "update")
    assert found["update"].cost.flops == pytest.approx(4 * accumulate + apply)
    # Bytes bound everything here: 10 of them a FLOP. Those of four batches are the program's own, which is not asked
    # how often its loop runs.
    assert found["update"].limit == "bytes"
    assert found["update"].seconds_bound == pytest.approx(10 * (accumulate + apply) / 819e9)


def test_what_generating_moves_is_counted_in_the_programs_themselves(model, monkeypatch):
    planned.pretend(monkeypatch)
    asked = []

    def compile_for(function, args, *_, unknown_trips=(), count_moved=False, **__):
        asked.append((unknown_trips, count_moved))
        moved = 123 if count_moved else None
        return dataclasses.replace(planned.compiled(args, limit=2**30), moved_bytes=moved)

    monkeypatch.setattr(costs, "compile_for", compile_for)
    found = {
        one.name: one for one in planner_lib.Planner(Variants(planned.config(model)), planned.NAME).plan().programs
    }
    generating = ["prefill", "critique_prefill", "refine_prefill", "decode"]
    assert [name for name, one in found.items() if one.cost and one.cost.bytes == 123] == generating
    # One prefill of 4 x 64 and one of 4 x 100; one more of what comes after others; four packed batches; the tick.
    assert sorted(trips for trips, counted in asked if counted) == [(1,), (4,), (4,), (4,), (64, 1)]
    assert all(counted or not trips for trips, counted in asked)


def test_what_slices_send_each_other_is_said(model, monkeypatch):
    planned.pretend(monkeypatch)
    made = planner_lib.Planner(Variants(planned.config(model)), planned.NAME).plan()
    *others, last = made.programs
    assert "(DCN)" not in plan.table([made])
    last = dataclasses.replace(last, cost=dataclasses.replace(last.cost, dcn=5.25e9))
    made = dataclasses.replace(made, programs=(*others, last))
    assert "GB sent to other slices (DCN): 5.250; not in its bound" in plan.table([made])
    assert plan.record(made)["programs"][-1]["dcn_bytes"] == 5.25e9


def test_an_iteration_takes_all_its_runs(model, monkeypatch):
    planned.pretend(monkeypatch)
    held_out = {"data.eval": "questions.jsonl"}  # whose evaluation takes none of its time
    found = planner_lib.Planner(Variants(planned.config(model, **held_out)), planned.NAME).plan()
    aside = ["continue", "share", "eval_decode", "eval_sample_decode"]  # the prompts decide how often the first two run
    assert [one.name for one in found.programs if not one.per_iteration] == aside
    runs = [(one.per_iteration, one.seconds_bound) for one in found.programs if one.name not in aside]
    assert found.seconds == pytest.approx(sum(times * seconds for times, seconds in runs))
    assert f"{found.sampled_tokens / found.seconds:.0f}" in plan.table([found])


def test_kernels_cost_what_their_formulas_say():
    """By hand: a forward pass over 256 rows, 1024 tokens and 128 features, 2 N V D; attention within one block."""
    hidden, table, row = ("bf16", (256, 128)), ("bf16", (1024, 128)), ("f32", (4, 256))
    operands = (("s32", (2,)), ("s32", (1, 256)), hidden, table)
    output = planner_lib.kernel_cost(cost.KernelCall(f"jvp({logprobs_pallas.FORWARD})", operands, (row,), 1))
    assert (output.flops, output.bytes) == (2 * 256 * 1024 * 128, 2 * (256 + 1024) * 128 + 4 * 256 * (1 + 4))
    q, k, numbers, seen = ("bf16", (8, 256, 128)), ("bf16", (2, 256, 128)), ("s32", (256, 128)), ("s32", (1, 1, 2))
    operands = (seen, seen, q, k, k, numbers, ("s32", (8, 256)), numbers)
    attention = planner_lib.kernel_cost(cost.KernelCall("splash_mha_fwd_segmented_residuals", operands, (q,), 1))
    assert attention.flops == 2 * 2 * 8 * 256 * 256 * 128


def test_a_kernel_without_a_formula_is_not_free():
    with pytest.raises(ValueError, match="mine is no kernel of"):
        planner_lib.kernel_cost(cost.KernelCall("mine", (), (), 1))


# --- what to change -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "layer"])
def test_no_more_is_computed_again_than_has_to_be(model, monkeypatch, kind):
    """The update needs 6, 4 or 3 times its arguments, by what its layers store."""
    needs, asked = {"none": 6, "mlp": 4, "layer": 3}, []

    def compile_for(function, args, keywords=None, **rest):
        asked.append((keywords or {}).get("remat"))
        return dataclasses.replace(
            planned.compiled(args, limit=2**30), needed_bytes=needs.get(asked[-1], 0) * planned.size(args)
        )

    def plan_on(hbm_bytes, remat):
        planned.pretend(monkeypatch, hbm_bytes=hbm_bytes)
        monkeypatch.setattr(costs, "compile_for", compile_for)
        config = planned.config(
            model,
            num_responses=1,
            **{"refine.kind": "none", "engine.num_slots": 1, "packing.rows": 1, "compute.remat": remat},
        )
        return planner_lib.Planner(Variants(config), planned.NAME).plan(costs=False)

    assert plan_on(2**30, "none").fits
    assert "none" in asked and not {"mlp", "layer"} & set(asked)  # what fits is compiled as it is, and only so
    enough = plan_on(2**30, kind).phases["update"]
    found = plan_on(enough, "none")
    assert not found.fits and found.suggestion == f"--config.compute.remat={kind}"
    assert plan_on(enough, kind).fits


def test_a_shorter_token_row_is_one_that_can_be_cut(model, monkeypatch):
    """120 + 40 tokens fit in 159; the next multiple of 128 is suggested, which the tensor axis divides."""

    def compile_for(function, args, keywords=None, **rest):
        batches = [one for one in args if isinstance(one, TrainBatch)]
        needs = 10 if any(batch.tokens_RS.shape[-1] > 256 for batch in batches) else 1
        return dataclasses.replace(planned.compiled(args, limit=2**40), needed_bytes=needs * planned.size(args))

    lengths = {"max_prompt_length": 120, "max_response_length": 40, "packing.length": 1024, "packing.rows": 1}
    config = planned.config(
        model, num_responses=1, **lengths, **{"refine.kind": "none", "engine.num_slots": 1, "compute.remat": "layer"}
    )
    planned.pretend(monkeypatch, hbm_bytes=2**40)
    monkeypatch.setattr(costs, "compile_for", compile_for)
    needed = planner_lib.Planner(Variants(config), planned.NAME).plan(costs=False).phases["update"]
    planned.pretend(monkeypatch, hbm_bytes=needed - 1)
    monkeypatch.setattr(costs, "compile_for", compile_for)
    found = planner_lib.Planner(Variants(config), planned.NAME).plan(costs=False)
    assert not found.fits and found.suggestion == "--config.packing.rows=1 --config.packing.length=256"


def test_no_change_helps_a_model_that_is_too_large(model, monkeypatch):
    planned.pretend(monkeypatch, hbm_bytes=1000)
    found = planner_lib.Planner(Variants(planned.config(model, **{"refine.kind": "none"})), planned.NAME).plan()
    assert not found.fits and found.suggestion is None
    assert all(one.cost is None and one.seconds_bound is None for one in found.programs)
    assert found.seconds is None and "no change found that fits; use a larger slice" in plan.table([found])


# --- the command line ---------------------------------------------------------------------------------------------


def run(*argv):
    cli.run(plan.main, require=("config", "topology"), flags=plan.FLAGS, argv=list(argv))


def check_schema(record):
    assert list(record) == ["topology", "fits", "hbm_limit_bytes", "phases", "programs", "suggestion"]
    assert isinstance(record["fits"], bool) and isinstance(record["hbm_limit_bytes"], int)
    for phase in record["phases"]:
        assert list(phase) == ["name", "peak_bytes"] and isinstance(phase["peak_bytes"], int)
        assert phase["name"] in programs.PHASES
    for one in record["programs"]:
        assert list(one) == ["name", "hbm_bytes", "flops", "bytes", "collectives", "dcn_bytes", "seconds_bound", "runs"]
        assert list(one["hbm_bytes"]) == ["weights", "optimizer", "kv_cache", "temporaries"]


def test_a_run_that_fits_exits_with_0(model, tmp_path, monkeypatch, capsys):
    planned.pretend(monkeypatch)
    run(*planned.arguments(model), "--topology=v5e:2x2", f"--json={tmp_path / 'plan.json'}")
    record = json.loads((tmp_path / "plan.json").read_text())
    check_schema(record)
    assert record["fits"] and record["suggestion"] is None and record["topology"] == "v5e:2x2"
    assert [one["name"] for one in record["programs"]][-1] == "update"
    out, err = capsys.readouterr()
    assert re.search(r"fits +yes\n", out) and "v5e:2x2: prefill needs" in err


def test_whether_it_fits_is_known_without_its_costs(model, tmp_path, monkeypatch, capsys):
    planned.pretend(monkeypatch)
    run(*planned.arguments(model), "--topology=v5e:2x2", "--nocosts", f"--json={tmp_path / 'plan.json'}")
    record = json.loads((tmp_path / "plan.json").read_text())
    check_schema(record)
    assert record["fits"] and all(one["flops"] is one["seconds_bound"] is None for one in record["programs"])
    out, err = capsys.readouterr()
    assert re.search(r"fits +yes\n", out) and "cost of" not in err


def test_a_run_that_does_not_fit_exits_with_3(model, tmp_path, monkeypatch, capsys):
    planned.pretend(monkeypatch, hbm_bytes=1000)
    with pytest.raises(SystemExit) as caught:
        run(*planned.arguments(model), "--topology=v5e:2x2,v6e:2x2", f"--json={tmp_path / 'plan.json'}")
    assert caught.value.code == 3
    records = json.loads((tmp_path / "plan.json").read_text())
    assert [record["topology"] for record in records] == ["v5e:2x2", "v6e:2x2"]
    for record in records:
        check_schema(record)
        assert not record["fits"] and record["programs"][0]["flops"] is None
    assert re.search(r"fits +no +no\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--topology=v5p:3x5x7"], "topology 'v5p:3x5x7' does not exist"),
        (["--topology=v5e:2x2,"], "topology '' is no CHIP:AxB"),
        (["--topology=v5e:2x2", "--config.mesh.fsdp=3"], "replica 1 x fsdp 3 x tensor 2 takes 6 devices, there are 4"),
        (["--topology=v5e:2x2", "--config.mesh.tensor=0"], "mesh.tensor 0 is no size"),
        (["--topology=v5e:2x2", "--config.optimizer.updates_per_batch=3"], "does not divide questions_per_iteration 8"),
        (["--topology=v5e:2x2", "--config.model.folder="], "no model: set model.folder"),
        (["--topology=v5e:2x2", "--config.model.folder=nowhere"], "nowhere/config.json does not exist"),
        (["--topology=v5e:2x2", "--config.max_prompt_length=9000"], "more than the 4096 tokens of context"),
        (["--topology=v5e:2x2", "--json=nowhere/plan.json"], "is in no folder; make nowhere first"),
        (["--topology=v5e:2x2", "--json=/"], "--json / is a folder; give a file"),
        (["--topology=v5e:2x2", "--config=nowhere.py"], "config file nowhere.py does not exist"),
        ([], "missing --topology"),
    ],
)
def test_a_mistake_is_one_line_and_exits_with_2(model, argv, said, monkeypatch, capsys):
    planned.pretend(monkeypatch)
    with pytest.raises(SystemExit) as caught:
        run(*planned.arguments(model), *argv)
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and said in err


def test_a_configuration_of_finetuning_is_none_of_a_run_that_generates(model, monkeypatch, capsys):
    planned.pretend(monkeypatch)
    with pytest.raises(SystemExit) as caught:
        run(
            "--topology=v5e:2x2",
            f"--config={planned.BASE.parent / 'sft.py'}",
            f"--config.model.folder={model}",
            "--config.data.train=x",
        )
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and out == "" and err.count("\n") == 1
    assert err.startswith(
        "error: finetune.rows_per_update 8 is of cgrpo finetune, and cgrpo plan is of cgrpo train, which g"
    )


# --- an architecture alone ----------------------------------------------------------------------------------------


def architecture(name):
    return config_lib.freeze(config_lib.load(planned.BASE.parent / f"{name}.py"))


@pytest.mark.parametrize(
    ("name", "billions"), [("qwen3_8b", 8.19), ("qwen3_32b", 32.8), ("qwen2_5_7b", 7.62), ("llama3_2_3b", 3.21)]
)
def test_the_papers_models_are_described_without_their_weights(name, billions):
    shape = run_settings(architecture(name), sharding.one_device()).policy
    assert programs.params_lib.num_params(shape) == pytest.approx(billions * 1e9, rel=0.005)


def test_an_architecture_alone_starts_no_run():
    with pytest.raises(UserError, match="'qwen3_8b' is enough to plan a run, not to start one.*set model.folder"):
        build_model.load_policy(c := architecture("qwen3_8b"), run_settings(c, sharding.one_device()))


def test_an_unknown_architecture_names_those_there_are():
    c = config_lib.load(planned.BASE)
    c.model.architecture = "gpt2"
    with pytest.raises(UserError, match="model.architecture 'gpt2' is unknown; use one of llama3_2_3b, qwen2_5_7b, "):
        run_settings(config_lib.freeze(c), sharding.one_device())
