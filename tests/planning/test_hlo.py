"""Reading compiled programs' text, on lines as XLA:TPU writes them; none of it needs libtpu."""

import pytest

from cgrpo_jax.models.kernels import cost
from cgrpo_jax.planning import hlo

SCAN = """HloModule jit_f, is_scheduled=true, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[]{:T(256)} add(%a, %b)
}

%body (state: (s32[], bf16[16,256], s32[])) -> (s32[], bf16[16,256], s32[]) {
  %state = (s32[]{:T(128)}, bf16[16,256]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%state), index=0
  %x = bf16[16,256]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%state), index=1
  %limit.1 = s32[]{:T(128)} get-tuple-element(%state), index=2
  %one = s32[]{:T(128)} constant(1), metadata={op_name="jit(f)"}
  %i.2 = s32[]{:T(128)} add(%i, %one)
  %psum = bf16[16,256]{1,0:T(8,128)(2,1)} all-reduce(%x), channel_id=1, replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %next = (s32[]{:T(128)}, bf16[16,256]{1,0}, s32[]{:T(128)}) tuple(%i.2, %psum, %limit.1)
}

%condition (state.1: (s32[], bf16[16,256], s32[])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, bf16[16,256]{1,0}, s32[]{:T(128)}) parameter(0)
  %i.1 = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %limit.2 = s32[]{:T(128)} get-tuple-element(%state.1), index=2
  ROOT %lt = pred[]{:T(512)} compare(%i.1, %limit.2), direction=LT
}

ENTRY %main (p: bf16[16,256]) -> bf16[16,256] {
  %p = bf16[16,256]{1,0:T(8,128)(2,1)} parameter(0), sharding={replicated}
  %zero = s32[]{:T(128)} constant(0)
  %copied = s32[]{:T(128)} copy(%zero)
  %limit = s32[]{:T(128)} constant(36)
  %start = (s32[]{:T(128)}, bf16[16,256]{1,0}, /*index=2*/s32[]{:T(128)}) tuple(%copied, %p, /*index=2*/%limit)
  %loop = (s32[]{:T(128)}, bf16[16,256]{1,0}, s32[]{:T(128)}) while(%start), condition=%condition, body=%body
  ROOT %out = bf16[16,256]{1,0} get-tuple-element(%loop), index=1
}
"""


def only(text):
    (found,) = hlo.collectives(text)
    return found


def in_entry(line, *computations):
    return "\n".join(["HloModule f, num_partitions=8", *computations, "ENTRY %main () -> f32[] {", f"  {line}", "}"])


def test_a_loop_that_counts_is_multiplied():
    assert only(SCAN) == hlo.Collective("all-reduce", (("bf16", (16, 256)),), group_size=2, times=36)


@pytest.mark.parametrize(
    ("old", "new", "times"),
    [
        ("constant(0)", "constant(3)", 33),
        ("constant(1)", "constant(5)", 8),
        ("direction=LT", "direction=LE", 37),
        ("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"7"}}', 7),
        ("direction=LT", "direction=GT", None),
        ("constant(0)", "parameter(1)", None),
        ("add(%i, %one)", "multiply(%i, %one)", None),
        ("tuple(%i.2, %psum, %limit.1)", "tuple(%i.2, %psum, %i)", None),
    ],
)
def test_the_trip_count_is_the_loops_own_or_unknown(old, new, times):
    assert old in SCAN
    assert only(SCAN.replace(old, new)).times == times


def test_an_unknown_trip_count_can_be_given():
    endless = SCAN.replace("direction=LT", "direction=GT")
    (given,), (known,) = (hlo.collectives(text, unknown_trips=(9,)) for text in (endless, SCAN))
    assert (given.times, known.times) == (9, 36)


def test_loops_in_loops_multiply():
    inner = SCAN[SCAN.index("  %zero") : SCAN.index("  ROOT %out")].replace("36", "3").replace("%p,", "%x,")
    outer = SCAN.replace("%body (", "%outer (").replace("body=%body", "body=%outer")
    psum = next(line for line in outer.splitlines() if "all-reduce(" in line)
    outer = outer.replace(psum + "\n", inner + "  %psum = bf16[16,256]{1,0} get-tuple-element(%loop), index=1\n")
    body = SCAN[SCAN.index("%body (") : SCAN.index("%condition (")]
    assert only(outer.replace("%condition (", body + "%condition (", 1)).times == 108


@pytest.mark.parametrize(
    ("line", "kind", "results", "group_size", "wire_bytes"),
    [
        (
            "%g = bf16[8,256]{1,0:T(8,128)(2,1)} all-gather(%x), replica_groups={{0,2,4,6},{1,3,5,7}}, dimensions={0}",
            "all-gather",
            (("bf16", (8, 256)),),
            4,
            4096 * 3 / 4,
        ),
        (
            "%g = (f32[64]{0}, f32[2,8]{1,0}) all-reduce(%x, %y), replica_groups={}, to_apply=%add",
            "all-reduce",
            (("f32", (64,)), ("f32", (2, 8))),
            8,
            2 * 320 * 7 / 8,
        ),
        (
            "%g = f32[64]{0} reduce-scatter(%x), replica_groups=[2,4]<=[4,2]T(1,0), dimensions={0}",
            "reduce-scatter",
            (("f32", (64,)),),
            4,
            256 * 3,
        ),
        (
            "%g = s8[16,4]{1,0} all-to-all(%x), replica_groups=[4,2]<=[8], dimensions={0}",
            "all-to-all",
            (("s8", (16, 4)),),
            2,
            32,
        ),
        (
            "%g = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            (("f32", (8,)),),
            2,
            32,
        ),
        (
            "%g = (f32[8]{0}, f32[16]{0}) all-gather-start(%x), replica_groups=[4,2]<=[8], dimensions={0}",
            "all-gather",
            (("f32", (16,)),),
            2,
            32,
        ),
        (
            "%g = f32[16]{0} all-reduce-start(%x), replica_groups=[4,2]<=[8], to_apply=%add",
            "all-reduce",
            (("f32", (16,)),),
            2,
            64,
        ),
    ],
)
def test_every_form_of_a_collective(line, kind, results, group_size, wire_bytes):
    found = only(in_entry(line))
    assert found == hlo.Collective(kind, results, group_size, times=1)
    assert found.wire_bytes == wire_bytes


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,2},{1,3}}", 2),
        ("[2,4]<=[4,2]T(1,0)", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1':(1)2}", 4),
        ("mesh['axis_0'=8,'axis_1'=2], device_ids=([2,2,4]T(0,2,1)) {'axis_0':(2)4}", 4),
        ("{}", 8),
    ],
)
def test_every_form_of_groups(groups, size):
    line = f"%g = f32[16]{{0}} all-gather(%x), channel_id=1, replica_groups={groups}, dimensions={{0}}"
    assert only(in_entry(line)).group_size == size


def test_groups_of_another_form_are_not_guessed():
    with pytest.raises(ValueError, match="unknown form of groups in HLO.*ring"):
        hlo.collectives(in_entry("%g = f32[16]{0} all-gather(%x), replica_groups=ring<4>, dimensions={0}"))


def test_the_end_of_a_collective_is_not_another():
    assert not hlo.collectives(in_entry("%d = f32[16]{0} all-gather-done(%g)"))


def test_a_collective_spread_over_fusions_counts_where_it_starts():
    gather = "all-gather(%x), replica_groups=[4,2]<=[8]"
    parts = [
        f"%start () -> f32[] {{\n  %a = f32[16]{{0}} {gather}\n"
        '  ROOT %b = (f32[8]{0}, f32[16]{0}) custom-call(%a), custom_call_target="AsyncCollectiveStart"\n}',
        f"%step () -> f32[] {{\n  %c = f32[16]{{0}} {gather},"
        ' backend_config={"async_collective_fusion_config":{"flag_start":"2"}}\n}',
        f"%end () -> f32[] {{\n  %d = f32[16]{{0}} {gather}\n"
        '  ROOT %e = f32[16]{0} custom-call(%d), custom_call_target="AsyncCollectiveDone"\n}',
    ]
    calls = "\n  ".join(f"%{n} = f32[16]{{0}} fusion(%x), kind=kCustom, calls=%{n}" for n in ("start", "step", "end"))
    assert only(in_entry(calls, *parts)).times == 1


def test_a_wrapped_collective_counts_once():
    wrapped = "%wrapped () -> f32[] {\n  %a = f32[16]{0} all-to-all(%x), replica_groups=[4,2]<=[8]\n}"
    lines = [
        "%s = ((f32[16]{0}), f32[16]{0}, u32[]) async-start(%x), calls=%wrapped",
        "  %d = f32[16]{0} async-done(%s), calls=%wrapped",
    ]
    assert only(in_entry("\n".join(lines), wrapped)).kind == "all-to-all"


def test_a_reduce_scatter_written_as_a_fusion():
    fused = "%all-reduce-scatter.3 () -> f32[] {\n  %a = f32[4,16]{1,0} all-reduce(%x), replica_groups=[2,4]<=[8]\n}"
    found = only(in_entry("%f = f32[1,16]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3", fused))
    assert (found.kind, found.wire_bytes) == ("reduce-scatter", 64 * 3)


def test_all_branches_are_taken():
    branches = [
        f"%{name} () -> f32[] {{\n  %a = f32[{size}]{{0}} all-to-all(%x), replica_groups=[4,2]<=[8]\n}}"
        for name, size in (("one", 1), ("two", 2))
    ]
    line = "%c = f32[] conditional(%i, %x, %x), branch_computations={%one, %two}"
    assert [found.results[0][1] for found in hlo.collectives(in_entry(line, *branches))] == [(1,), (2,)]


def test_operations_are_counted_with_their_loops():
    """By hand: a copy before the loop; in its body an addition and an all-reduce, tuples and constants free."""
    assert hlo.operations(SCAN) == 1 + 36 * 2
    assert hlo.body_operations(SCAN, 36) == 2 and hlo.body_operations(SCAN, 35) is None
    endless = SCAN.replace("direction=LT", "direction=GT")
    assert hlo.operations(endless) is None and hlo.operations(endless, unknown_trips=(9,)) == 1 + 9 * 2


def test_operations_of_the_longest_branch_count():
    branches = [
        "\n".join([f"%{name} () -> f32[] {{", *(f"  %a{i} = f32[8]{{0}} negate(%x)" for i in range(size)), "}"])
        for name, size in (("one", 1), ("two", 3))
    ]
    line = "%c = f32[] conditional(%i, %x, %x), branch_computations={%one, %two}"
    assert hlo.operations(in_entry(line, *branches)) == 3


def test_what_is_sent_to_other_slices_is_of_the_host_transfers():
    attributes = (
        'is_host_transfer=true, frontend_attributes={_xla_megascale_target="{1,2,3}x{0:3}",'
        '_xla_megascale_transfer_type="ALL_REDUCE"}'
    )
    lines = [
        f"%s = (f32[256,8]{{1,0}}, u32[], token[]) send(%x, %t), channel_id=2, {attributes}",
        f"  %r = (f32[256,8]{{1,0}}, u32[], token[]) recv(%t), channel_id=1, {attributes}",
        "  %other = (f32[16]{0}, u32[], token[]) send(%y, %t), channel_id=3, is_host_transfer=true",
    ]
    (found,) = hlo.transfers_between_slices(in_entry("\n".join(lines)))
    assert found == hlo.Collective("all-reduce", (("f32", (256, 8)),), group_size=3, times=1)
    assert found.wire_bytes == 2 * 256 * 8 * 4 * 2 / 3
    assert not hlo.collectives(in_entry("\n".join(lines)))


def test_a_kernel_call_names_its_shapes():
    lines = [
        "%x = bf16[256,128]{1,0} parameter(0)",
        '  %k.1 = f32[256]{0} custom-call(%x, %x), custom_call_target="tpu_custom_call",'
        ' metadata={op_name="jit(f)/shard_map/my_matmul/pallas_call"}, backend_config={"body":"(=["}',
        '  %other = f32[256]{0} custom-call(%x), custom_call_target="AllocateBuffer"',
    ]
    x = ("bf16", (256, 128))
    assert hlo.kernel_calls(in_entry("\n".join(lines))) == [
        cost.KernelCall("my_matmul", (x, x), (("f32", (256,)),), times=1)
    ]


@pytest.mark.parametrize(
    ("dtype", "shape", "size"),
    [
        ("bf16", (2, 3), 12),
        ("f32", (), 4),
        ("pred", (9,), 9),
        ("s4", (3,), 2),
        ("f8e4m3fn", (5,), 5),
        ("c64", (2,), 16),
    ],
)
def test_bytes_of_a_dtype(dtype, shape, size):
    assert cost.num_bytes(dtype, shape) == size
