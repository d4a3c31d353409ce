"""Counting what compiled programs move to and from HBM, on lines as XLA:TPU writes them; none of it needs libtpu."""

import pytest

from cgrpo_jax.planning import hbm_traffic

X = "%x = f32[16,128]{1,0:T(8,128)} parameter(0)"  # 8192 bytes
BIG = "%big = f32[64,16,128]{2,1,0:T(8,128)} parameter(1)"
INDEX = "%i = s32[]{:T(128)S(6)} parameter(2)"


def moved(*lines, computations=(), **given):
    text = "\n".join(
        ["HloModule f, num_partitions=8", *computations, "ENTRY %main () -> f32[] {", *(f"  {one}" for one in lines)]
    )
    return hbm_traffic.hbm_bytes(text + "\n}", **given)


def computation(name, *lines):
    return "\n".join([f"%{name} () -> f32[] {{", *(f"  {one}" for one in lines), "}"])


@pytest.mark.parametrize(
    ("line", "size"),
    [
        ("%y = f32[16,128]{1,0:T(8,128)} sine(%x)", 2 * 8192),
        ("%y = f32[16,128]{1,0:T(8,128)S(1)} sine(%x)", 8192),  # stays on the chip
        ("%y = f32[16,128]{1,0:T(8,128)} add(%x, %x)", 2 * 8192),  # read once
        ("%y = bf16[16,128]{1,0:T(8,128)(2,1)} convert(%x)", 8192 + 4096),
        ("%y = f32[128,16]{0,1:T(8,128)} bitcast(%x)", 0),
        ("%y = (f32[16,128]{1,0:T(8,128)}) tuple(%x)", 0),
        ("%y = f32[16,128]{1,0:T(8,128)} copy(%x)", 2 * 8192),
        ("%y = f32[16,128]{1,0:T(8,128)S(1)} copy(%x)", 8192),
        ("%y = f32[16,64]{1,0:T(8,128)} slice(%x), slice={[0:16], [0:64]}", 2 * 8192),  # its tiles are filled up
        ("%y = f32[16]{0:T(128)} slice(%x), slice={[0:16], [0:1]}", 2 * 128 * 4),
        ("%y = f32[8,128]{1,0:T(8,128)} custom-call(), custom_call_target=\"AllocateBuffer\"", 0),
        ("%y = f32[8,128]{1,0:T(8,128)} custom-call(%x), custom_call_target=\"other\"", 8192 + 4096),
    ],
)  # fmt: skip
def test_operands_and_results_in_hbm_count_once(line, size):
    assert moved(X, line) == size


def test_what_is_copied_meanwhile_counts_where_it_starts():
    fetched = (
        "%s = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%x)",
        "%d = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%s)",
        "%y = f32[16,128]{1,0:T(8,128)S(1)} sine(%d)",
    )
    assert moved(X, *fetched) == 8192
    part = (
        "%s = ((f32[16,128]{1,0:T(8,128)}), f32[8,128]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:8]}",
        "%d = f32[8,128]{1,0:T(8,128)S(1)} slice-done(%s)",
    )
    assert moved(X, *part) == 4096
    gather = (
        "%s = (f32[16,128]{1,0:T(8,128)}, f32[32,128]{1,0:T(8,128)}) all-gather-start(%x), dimensions={0}",
        "%d = f32[32,128]{1,0:T(8,128)} all-gather-done(%s)",
    )
    assert moved(X, *gather) == 3 * 8192


def test_an_update_in_place_moves_the_update():
    update = "%u = f32[1,16,128]{2,1,0:T(8,128)S(1)} constant(0)"
    line = "%y = f32[64,16,128]{2,1,0:T(8,128)} dynamic-update-slice(%big, %u, %i, %i, %i)"
    assert moved(BIG, INDEX, update, line) == 2 * 8192
    assert moved(BIG, INDEX, update.replace("S(1)", ""), line) == 3 * 8192
    assert moved(BIG.replace(")}", ")S(1)}"), INDEX, update, line.replace(")}", ")S(1)}")) == 0


SLICED = computation(
    "sliced",
    "%p = f32[64,16,128]{2,1,0:T(8,128)} parameter(0)",
    "%q = s32[]{:T(128)S(6)} parameter(1)",
    "%part = f32[1,16,128]{2,1,0:T(8,128)} dynamic-slice(%p, %q, %q, %q), dynamic_slice_sizes={1,16,128}",
    "ROOT %out = f32[16,128]{1,0:T(8,128)} bitcast(%part)",
)


def fusion(called, operands="%big, %i", result="f32[16,128]{1,0:T(8,128)}"):
    return f"%f = {result} fusion({operands}), kind=kLoop, calls=%{called}"


def test_a_fusion_reads_the_slice_that_it_takes():
    assert moved(BIG, INDEX, fusion("sliced"), computations=[SLICED]) == 2 * 8192
    around = computation(
        "around",
        "%p = f32[64,16,128]{2,1,0:T(8,128)} parameter(0)",
        "%q = s32[]{:T(128)S(6)} parameter(1)",
        "%inner = f32[16,128]{1,0:T(8,128)} fusion(%p, %q), kind=kLoop, calls=%sliced",
        "ROOT %out = f32[16,128]{1,0:T(8,128)S(1)} sine(%inner)",
    )
    on_chip = "f32[16,128]{1,0:T(8,128)S(1)}"
    assert moved(BIG, INDEX, fusion("around", result=on_chip), computations=[SLICED, around]) == 8192
    both = SLICED.replace(
        "ROOT %out = f32[16,128]{1,0:T(8,128)} bitcast(%part)", "ROOT %out = f32[] reduce(%p, %part), to_apply=%add"
    )
    assert moved(BIG, INDEX, fusion("sliced", result=on_chip), computations=[both]) == 64 * 8192  # all of it, once


def test_a_fusion_that_ends_in_an_update_moves_the_update():
    updated = computation(
        "updated",
        "%p = f32[64,16,128]{2,1,0:T(8,128)} parameter(0)",
        "%q = s32[]{:T(128)S(6)} parameter(1)",
        "%u = f32[1,16,128]{2,1,0:T(8,128)} broadcast(%q), dimensions={}",
        "ROOT %out = f32[64,16,128]{2,1,0:T(8,128)} dynamic-update-slice(%p, %u, %q, %q, %q)",
    )
    result = "f32[64,16,128]{2,1,0:T(8,128)}"
    assert moved(BIG, INDEX, fusion("updated", result=result), computations=[updated]) == 2 * 8192
    # Not at its end: all of the array is read.
    summed = updated.replace("ROOT %out", "%new").replace("%q)\n}", "%q)\n  ROOT %s = f32[] reduce(%new)\n}")
    assert moved(BIG, INDEX, fusion("updated", result="f32[]{:T(128)S(6)}"), computations=[summed]) == 64 * 8192


def test_a_fusion_that_ends_in_a_scatter_moves_what_is_scattered():
    scattered = computation(
        "scattered",
        "%p = f32[64,16,128]{2,1,0:T(8,128)} parameter(0)",
        "%q = s32[]{:T(128)S(6)} parameter(1)",
        "%at = s32[2,1]{1,0:T(8,128)S(1)} broadcast(%q), dimensions={}",
        "%u = f32[2,16,128]{2,1,0:T(8,128)} broadcast(%q), dimensions={}",
        "ROOT %out = f32[64,16,128]{2,1,0:T(8,128)} scatter(%p, %at, %u), to_apply=%add",
    )
    result = "f32[64,16,128]{2,1,0:T(8,128)}"
    assert moved(BIG, INDEX, fusion("scattered", result=result), computations=[scattered]) == 2 * 2 * 8192


def test_a_fusion_may_end_in_one_operation_of_several_results():
    """A maximum and its place: both are written, and what they are of is read."""
    shapes = "f32[16]{0:T(256)}, s32[16]{0:T(256)S(1)}"
    largest = computation(
        "largest",
        "%p = f32[64,16,128]{2,1,0:T(8,128)} parameter(0)",
        "%q = s32[64,16,128]{2,1,0:T(8,128)} iota(), iota_dimension=0",
        "%a = f32[]{:T(128)} constant(0)",
        "%b = s32[]{:T(128)} constant(0)",
        f"ROOT %out = ({shapes}) reduce(%p, %q, %a, %b), dimensions={{0,2}}, to_apply=%larger",
    )
    line = fusion("largest", operands="%big", result=f"({shapes})")
    assert moved(BIG, line, computations=[largest]) == 64 * 8192 + 1024  # the second result stays on chip


BODY = computation(
    "body",
    "%state = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) parameter(0)",
    "%i = s32[]{:T(128)S(6)} get-tuple-element(%state), index=0",
    "%x = f32[16,128]{1,0:T(8,128)} get-tuple-element(%state), index=1",
    "%y = f32[16,128]{1,0:T(8,128)} sine(%x)",
    "ROOT %next = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) tuple(%i, %y)",
)
TEST = computation("test", "%state = (s32[]{:T(128)S(6)}) parameter(0)", "ROOT %go = pred[]{:T(512)S(6)} constant(1)")
LOOP = "%loop = (s32[]{:T(128)S(6)}, f32[16,128]{1,0:T(8,128)}) while(%start), condition=%test, body=%body"
START = (X, "%zero = s32[]{:T(128)S(6)} constant(0)", "%start = (s32[], f32[16,128]) tuple(%zero, %x)")


def test_a_loops_body_counts_as_often_as_it_runs():
    once = 2 * 8192
    known = LOOP + ', backend_config={"known_trip_count":{"n":"36"}}'
    assert moved(*START, known, computations=[BODY, TEST]) == 36 * once
    assert moved(*START, LOOP, computations=[BODY, TEST], unknown_trips=(5,)) == 5 * once
    assert moved(*START, LOOP, computations=[BODY, TEST]) is None


def test_loops_that_end_on_data_run_as_often_as_is_said_for_their_depth():
    inner = LOOP.replace("%start", "%state")
    outer = BODY.replace("%body ", "%outer ").replace("  %y =", f"  {inner}\n  %y =")
    given = {"unknown_trips": (5, 3)}
    line = LOOP.replace("body=%body", "body=%outer")
    assert moved(*START, line, computations=[BODY, outer, TEST], **given) == 5 * (3 + 1) * 2 * 8192
    # A loop between them whose count is known is none of them.
    counted = outer.replace("condition=%test, body=%body", 'condition=%test, body=%body, known_trip_count":{"n":"36"}')
    counted = counted.replace("known_trip_count", 'backend_config={"known_trip_count')
    assert moved(*START, line, computations=[BODY, counted, TEST], unknown_trips=(5,)) == 5 * (36 + 1) * 2 * 8192
    assert moved(*START, line, computations=[BODY, outer, TEST], unknown_trips=(5,)) is None


def test_the_branch_that_moves_most_counts():
    branches = [
        computation(name, "%p = f32[16,128]{1,0:T(8,128)} parameter(0)", f"ROOT %y = {result} sine(%p)")
        for name, result in (("large", "f32[16,128]{1,0:T(8,128)}"), ("small", "f32[16,128]{1,0:T(8,128)S(1)}"))
    ]
    line = "%c = f32[16,128]{1,0:T(8,128)} conditional(%i, %x, %x), branch_computations={%large, %small}"
    assert moved(X, INDEX, line, computations=branches) == 2 * 8192
    call = "%c = f32[16,128]{1,0:T(8,128)} call(%x), to_apply=%large"
    assert moved(X, call, computations=branches) == 2 * 8192
