"""Arithmetic of costs and the compiler's messages; none of it needs libtpu."""

import jax
import jax.numpy as jnp
import pytest

from cgrpo_jax.planning import costs
from cgrpo_jax.planning.costs import Cost
from cgrpo_jax.runtime import chips

GIB = 2**30


def test_costs_add_and_scale():
    total = Cost(1.0, 2.0, {"all-gather": 3.0}) + 2 * Cost(10.0, 20.0, {"all-gather": 30.0, "all-reduce": 5.0})
    assert total == Cost(21.0, 42.0, {"all-gather": 63.0, "all-reduce": 10.0})
    assert total - total == Cost(0.0, 0.0, {"all-gather": 0.0, "all-reduce": 0.0})


def test_operations_and_bytes_to_other_slices_add_and_scale():
    total = Cost(operations=3.0, dcn=5.0) + 2 * Cost(operations=10.0, dcn=100.0)
    assert total == Cost(operations=23.0, dcn=205.0)


def test_a_layer_costs_what_every_layer_costs():
    outside, layer = Cost(5.0, 7.0, {"all-reduce": 2.0}), Cost(3.0, 4.0, {"all-gather": 8.0})
    at = {depth: outside + depth * layer for depth in (2, 3)}
    assert costs.extrapolate(at, 36) == outside + 36 * layer
    assert costs.extrapolate({2: at[2], 5: outside + 5 * layer}, 36) == outside + 36 * layer


def test_decoding_is_linear_in_layers_and_tokens():
    def cost(layers, tokens):
        return Cost(5.0 + 7.0 * layers + tokens * (11.0 + 13.0 * layers))

    shallow = {(layers, tokens): cost(layers, tokens) for layers in (2, 3) for tokens in (1, 2)}
    assert costs.extrapolate_decode(shallow, layers=36, tokens=6144) == cost(36, 6144)


@pytest.mark.parametrize(
    ("cost", "limit", "seconds"),
    [
        (Cost(459e12, 1.0), "flops", 1.0),
        (Cost(459e12, 2 * 2765e9), "bytes", 2.0),
        (Cost(459e12, 2765e9, {"all-gather": 600e9, "all-reduce": 1200e9}), "collectives", 3.0),
    ],
)
def test_the_slowest_part_bounds_the_time(cost, limit, seconds):
    bound = costs.seconds_bound(cost, chips.CHIPS["v5p"])
    assert bound.limit == limit
    assert bound.seconds == bound.seconds_by[limit] == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("message", "figures"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (18.45G) "
            "exceeds available HBM (15.75G).",
            (round(18.45 * GIB), round(15.75 * GIB)),
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 18.00G of 15.75G hbm. Exceeded hbm capacity by 2.25G.",
            (18 * GIB, round(15.75 * GIB)),
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem. Used 20.0M of 16.0M vmem.", None),
        ("INTERNAL: Used 18.00G of 15.75G hbm.", None),
    ],
)
def test_what_the_compiler_says_when_it_does_not_fit(message, figures):
    assert costs.out_of_memory(message) == figures


def test_holes_in_the_heap_are_needed_too():
    without = costs.Memory(argument=10, output=5, alias=2, temporary=7, code=1, peak=30)
    assert without.needed == 30
    assert costs.Memory(argument=10, output=5, alias=2, temporary=27, code=1, peak=30).needed == 41


def test_an_argument_must_say_where_it_lies():
    with pytest.raises(ValueError, match=r"argument \[0\]\[0\]\['w'\] has no sharding"):
        costs.compile_for(jnp.sin, ({"w": jax.ShapeDtypeStruct((2,), jnp.float32)},))
