"""A small run planned with the real TPU compiler; needs the extra `tpu`, no TPU."""

import dataclasses
import math

import planned
import pytest

from cgrpo_jax.inference import slot_scheduler
from cgrpo_jax.planning import planner as planner_lib
from cgrpo_jax.planning import programs
from cgrpo_jax.runs.variants import Variants

NAME, FSDP, TENSOR = "v5e:2x4", 4, 2
WIDTH, MLP, HEADS, KV_HEADS, HEAD, VOCABULARY, LAYERS = 1024, 3072, 8, 2, 128, 16384, 2
PROMPT, LENGTH, ROWS, SAMPLES, PACKED, TICK = 80, 176, 8, 4, 256, 64
AT_ONCE = 4  # prompts that a prefill takes


def config(model, **more):
    small = {
        "mesh.fsdp": FSDP,
        "mesh.tensor": TENSOR,
        "compute.dtype": "",
        "questions_per_iteration": 8,
        "num_responses": SAMPLES,
        "engine.num_slots": ROWS,
        "refine.kind": "none",
        "engine.decode_chunk": TICK,
        "engine.prompt_bucket": 64,
        "max_prompt_length": PROMPT,
        "max_response_length": LENGTH,
        "packing.rows": 1,
        "packing.length": PACKED,
    }
    return planned.config(model, **small | more)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return planned.describe(
        tmp_path_factory.mktemp("policy"),
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=MLP,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=HEAD,
        num_hidden_layers=LAYERS,
    )


@pytest.fixture(scope="module")
def planner(model):
    return planner_lib.Planner(Variants(config(model)), NAME)


@pytest.fixture(scope="module")
def plan(planner):
    return planner.plan()


@pytest.fixture(scope="module")
def reports(plan):
    return {one.name: one for one in plan.programs}


def test_every_program_compiles_and_fits(plan, planner):
    assert plan.fits and plan.suggestion is None
    assert list(plan.phases) == ["prefill", "decode", "reshard", "update"]
    assert [one.name for one in plan.programs] == ["prefill", "continue", "share", "decode", "reshard", "update"]
    assert all(one.seconds_bound > 0 for one in plan.programs if one.name not in ("continue", "share"))
    assert slot_scheduler.rows_at_once(PROMPT) == AT_ONCE
    assert all(program.fits for program in planner.compiled.values())
    phases = {call.name: call.phase for call in planner.programs.calls}
    for one in plan.programs:
        assert sum(one.hbm_bytes.values()) <= plan.phases[phases[one.name]]


# --- memory -------------------------------------------------------------------------------------------------------

LAYER = 2 * WIDTH * HEADS * HEAD + 2 * WIDTH * KV_HEADS * HEAD + 3 * WIDTH * MLP
MATRICES = LAYERS * LAYER + 2 * VOCABULARY * WIDTH


def test_weights_optimizer_and_cache_are_those_counted_by_hand(reports, planner):
    trained, sampling = 4 * MATRICES / (FSDP * TENSOR), 2 * MATRICES / TENSOR
    cache = 2 * 2 * LAYERS * KV_HEADS // TENSOR * HEAD * ROWS * (PROMPT + LENGTH)
    decode = reports["decode"].hbm_bytes
    assert decode["weights"] == pytest.approx(trained + sampling, rel=0.05)
    assert decode["optimizer"] == pytest.approx(2 * trained, rel=0.05)
    assert decode["kv_cache"] == pytest.approx(cache, rel=0.05)
    # And the compiler's own count of what it was given: nothing was dropped, nothing padded.
    arguments = {call.name: planner._compile(call).memory.argument for call in planner.programs.calls}
    assert arguments["decode"] == pytest.approx(sampling + cache, rel=0.05)
    assert arguments["share"] == pytest.approx(cache, rel=0.05)
    assert arguments["update"] == pytest.approx(4 * trained, rel=0.05)  # of the step: gradient and Adam's two


def test_the_state_takes_its_own_place(planner):
    apply = next(call for call in planner.programs.calls if call.function.__name__ == "apply")
    memory = planner._compile(apply).memory
    state = sum(planner.programs.buffers[name].bytes for name in ("trained", "optimizer"))
    assert memory.alias == pytest.approx(state, rel=0.05)


@pytest.mark.parametrize("name", ["prefill", "continue", "share", "decode"])
def test_the_cache_takes_its_own_place(planner, name):
    call = next(call for call in planner.programs.calls if call.name == name)
    assert planner._compile(call).memory.alias == pytest.approx(planner.programs.buffers["slots"].bytes, rel=0.05)


# --- costs --------------------------------------------------------------------------------------------------------


def forward_flops(tokens, seen, unembedded):
    """FLOPs of one device for its group's tokens, each of which sees so many, and those that become logits."""
    attention = 4 * tokens * seen * HEADS * HEAD
    return (LAYERS * (2 * tokens * LAYER + attention) + 2 * unembedded * WIDTH * VOCABULARY) / TENSOR


def hand_flops():
    # A layer forward once, and again where it is rematerialised, but for its last product; twice as much backward.
    # Of attention two products forward, twice, and seven backward, whose two kernels each compute scores again; of the
    # output layer one forward and four backward, likewise.
    attention = 2 * PACKED * PACKED * HEADS * HEAD
    layer = 8 * PACKED * LAYER - 2 * PACKED * WIDTH * MLP + 11 * attention
    packed = (LAYERS * layer + 10 * PACKED * WIDTH * VOCABULARY) / TENSOR
    batches = 4 * SAMPLES / FSDP  # 4 questions an update, a packed row for each response
    return {
        "prefill": forward_flops(AT_ONCE * PROMPT, PROMPT, 0),
        "decode": TICK * forward_flops(ROWS, PROMPT + LENGTH, ROWS),
        "update": batches * packed,
    }


@pytest.mark.parametrize("name", ["prefill", "decode", "update"])
def test_flops_are_those_counted_by_hand(reports, name):
    assert reports[name].cost.flops == pytest.approx(hand_flops()[name], rel=0.03)


@pytest.mark.parametrize("name", ["prefill", "decode", "update"])
def test_the_programs_own_count_misses_its_loops(planner, name):
    call = next(call for call in planner.programs.calls if call.name == name)
    own = call.times * planner._compile(call).cost.flops
    assert own != pytest.approx(hand_flops()[name], rel=0.03) and own < hand_flops()[name]


def test_decoding_reads_the_weights_and_the_cache_at_every_token(reports):
    sizes = reports["decode"].hbm_bytes
    sampling = 2 * MATRICES / TENSOR - 2 * VOCABULARY * WIDTH / TENSOR  # of the embedding, single rows
    least = TICK * (sampling + sizes["kv_cache"])
    assert least < reports["decode"].cost.bytes < 1.25 * least
    assert reports["decode"].limit == "bytes"


def test_a_prefill_reads_the_weights_and_writes_the_cache(reports):
    # All weights but the embeddings. So small a stack the compiler fetches whole, and part of it in either layer.
    weights = 2 * LAYERS * LAYER / TENSOR
    assert weights < reports["prefill"].cost.bytes < 3 * weights


def test_weights_are_gathered_once_an_iteration_and_once_a_pass(reports):
    gathered = (FSDP - 1) / FSDP * MATRICES / TENSOR
    assert reports["reshard"].cost.collectives == {"all-gather": pytest.approx(2 * gathered, rel=0.01)}
    assert reports["decode"].cost.collectives.get("all-gather", 0) < gathered  # for all tokens together
    batches = 4 * SAMPLES / FSDP
    # Forward and backward, in bfloat16; of embedding and unembedding once.
    update = reports["update"].cost.collectives
    assert batches * 2 * gathered < update["all-gather"] < 1.05 * batches * 2 * 2 * gathered


# --- what is exchanged --------------------------------------------------------------------------------------------


def exchanged(planner):
    for call in planner.programs.calls:
        for found in planner._compile(call).collectives:
            for _, shape in found.results:
                yield call, found, shape


def test_no_logits_are_gathered(planner):
    for call, found, shape in exchanged(planner):
        if VOCABULARY in shape:
            assert math.prod(shape) == VOCABULARY, (call.name, found)


def test_no_activations_go_over_fsdp(planner):
    tokens = {ROWS, AT_ONCE * PROMPT, 64, PACKED}
    tokens |= {FSDP * count for count in tokens}
    for call, found, shape in exchanged(planner):
        if call.name != "reshard" and found.group_size != TENSOR and shape[-1:] == (WIDTH,):
            assert math.prod(shape) // WIDTH not in tokens, (call.name, found)
    assert any(found.group_size == FSDP for _, found, _ in exchanged(planner))


def test_no_loop_runs_unknown_times(planner):
    assert all(found.times is not None for _, found, _ in exchanged(planner))


# --- what does not fit --------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_said_and_the_change_fits(tmp_path, monkeypatch):
    # Decoding alone is judged, for time: 64 slots of 262144 tokens take 16 GiB.
    def decoding(*args, of=programs.of, **keywords):
        found = of(*args, **keywords)
        calls = tuple(call for call in found.calls if call.name == "decode")
        return dataclasses.replace(found, calls=calls)

    monkeypatch.setattr(programs, "of", decoding)
    monkeypatch.setattr(planner_lib.Planner, "_planned_programs", lambda self, costed: ())
    model = planned.describe(tmp_path / "long", num_hidden_layers=2, head_dim=HEAD, max_position_embeddings=2**18)
    big = {"engine.num_slots": 64, "max_response_length": 2**18 - PROMPT, "packing.length": 0}
    found = planner_lib.Planner(Variants(config(model, **big)), NAME).plan()
    assert not found.fits and max(found.phases.values()) > found.hbm_limit_bytes
    assert found.suggestion == "--config.engine.num_slots=32"
    assert planner_lib.Planner(Variants(config(model, **big | {"engine.num_slots": 32})), NAME).plan().fits
