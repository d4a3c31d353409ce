"""Seconds of simulated calls, by hand."""

import dataclasses

import numpy as np
import pytest

from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.slot_scheduler import Placed
from cgrpo_jax.inference.slot_writes import Copy, Prefill
from cgrpo_jax.planning import pricing
from cgrpo_jax.planning.costs import Cost
from cgrpo_jax.planning.simulation import Tick
from cgrpo_jax.records import RowIndex, Stage
from cgrpo_jax.runtime.chips import CHIPS

RATE = pricing.Rates(hbm=10.0, flops=100.0, links=2.0, operation=0.5, dispatch=0.25)


class Costs:
    """A step moves 20 bytes and one more a position; around the steps 5, in 3 operations. A prefill computes 300."""

    decode = pricing.DecodeCosts(
        call=Cost(bytes=5.0, operations=3.0),
        step=Cost(bytes=20.0, flops=50.0, operations=2.0),
        position=Cost(bytes=1.0, flops=4.0, operations=0.1),
    )

    def over_pages(self, tokens, rows):
        if not tokens:
            return self.decode
        return pricing.DecodeCosts(Cost(), Cost(bytes=20.0 + tokens, operations=4.0), self.decode.position)

    def prefill(self, call):
        return Cost(bytes=10.0, flops=300.0, operations=4.0)

    def copy(self, call):
        return Cost(bytes=40.0, operations=6.0)


def placed(*stages):
    prompt = np.arange(9, dtype=np.int32)
    return tuple(Placed(i, Request(prompt, [RowIndex(0, stage=one)], 5), 0, None, 0) for i, one in enumerate(stages))


def tick(read, needed, live, *, waiting=False):
    return Tick(np.array(read), np.array(needed), np.array(live), waiting, num_slots=4)


def test_a_step_takes_what_bounds_it_and_its_operations():
    found = pricing.price(tick([10, 10], [3, 4], [[2, 0, 0], [1, 0, 1]]), Costs(), RATE)
    assert found.parts == {
        "decode: weights": pytest.approx(2 * 2.0 + 0.5),
        "decode: keys and values": pytest.approx(2 * 1.0),
        "operations": pytest.approx(0.5 * (2 * (2 + 1) + 3)),
        "dispatch": 0.25,
    }
    assert found.needed == pytest.approx(0.3 + 0.4)
    # Of each step by its texts; what is around the steps, 0.5 + 1.5 + 0.25, by the texts of all.
    step, around = 3.0 + 1.5, 2.25
    shares = [1.5 * step + 0.75 * around, 0.0, 0.5 * step + 0.25 * around]
    assert found.stages.tolist() == pytest.approx(shares)
    assert sum(found.parts.values()) == pytest.approx(found.stages.sum())


def test_what_enters_beside_a_step_takes_what_it_adds():
    """By hand: 30 bytes more than a step, for a critique's prompt, and 10 positions read; one response decodes."""
    both = Tick(np.array([10]), np.array([8]), np.array([[1, 0, 0]]), False, 4, 30, (0, 25, 0), 2, 4)
    found = pricing.price(both, Costs(), RATE)
    assert found.parts == {
        "prefill": pytest.approx(3.0),
        "decode: weights": pytest.approx(2.0),
        "decode: keys and values": pytest.approx(1.0),
        "operations": pytest.approx(0.5 * (4 + 1)),
        "dispatch": 0.25,
    }
    assert found.stages.tolist() == pytest.approx([2.0 + 1.0 + 2.5 + 0.25, 3.0, 0.0])
    alone = pricing.price(dataclasses.replace(both, live_N3=np.zeros((1, 3), int)), Costs(), RATE)
    assert alone.stages.tolist() == pytest.approx([0.0, sum(alone.parts.values()), 0.0])


def test_products_bound_a_step_that_has_many_positions():
    found = pricing.price(tick([100], [1], [[1, 0, 0]]), Costs(), dataclasses.replace(RATE, hbm=1000.0))
    assert found.parts["decode: weights"] == pytest.approx(0.5 + 0.005)
    assert found.parts["decode: keys and values"] == pytest.approx(4.0)


def test_writes_are_of_the_stages_that_they_are_for():
    both = placed(Stage.CRITIQUE, Stage.CRITIQUE, Stage.REFINEMENT)
    found = pricing.price(Prefill(4, 16, False, (both[:2], both[2:])), Costs(), RATE)
    assert found.parts == {"prefill": 3.0, "operations": 2.0, "dispatch": 0.25}
    assert found.stages.tolist() == pytest.approx([0.0, 5.25 * 2 / 3, 5.25 / 3])
    assert pricing.price(Copy(16, (both,)), Costs(), RATE).parts == {"copies": 4.0, "operations": 3.0, "dispatch": 0.25}


def test_an_iteration_adds_up_its_calls():
    calls = [
        Prefill(4, 16, False, (placed(Stage.RESPONSE, Stage.RESPONSE),)),
        tick([10], [8], [[4, 0, 0]], waiting=True),
        Prefill(4, 16, False, (placed(Stage.REFINEMENT),)),
        tick([10, 10], [4, 4], [[1, 0, 1], [0, 0, 1]]),
    ]
    priced = [pricing.price(call, Costs(), RATE) for call in calls]
    found = pricing.generation({"policy": calls}, {"policy": Costs()}, RATE)
    assert found.seconds == pytest.approx(sum(sum(one.parts.values()) for one in priced))
    assert sum(found.stages.values()) == pytest.approx(found.seconds)
    assert found.tail == pytest.approx(sum(priced[-1].parts.values()))
    assert (found.tokens, found.steps, found.calls) == (7, 3, 4)
    assert found.occupancy == pytest.approx(7 / 12) and found.occupancy_waiting == 1.0
    assert (found.prompt_tokens, found.prompt_positions) == (3 * 8, 2 * 64)


def test_what_the_host_takes_is_hidden_behind_the_call_before():
    """By hand: a call is 2.5 + 1 + 0.5 (2 + 1 + 3) + 0.25 = 6.75, a prefill 5.25.

    Of a prefill that comes with a call the host must be done as well, so that it hides what comes after that call.
    """
    one, write = tick([10], [8], [[1, 0, 1]]), Prefill(4, 16, False, (placed(Stage.RESPONSE),))
    ahead = dataclasses.replace(one, ahead=True)
    for host, waited in ((5.0, 0.0), (6.75, 0.0), (10.0, 3.25), (13.0, 6.25 + 1.0)):
        rate = dataclasses.replace(RATE, host=host)
        apart = pricing.generation({"policy": [one, write, one, one]}, {"policy": Costs()}, rate)
        assert apart.parts["host"] == pytest.approx(3 * host) and apart.ahead == 0
        assert apart.seconds == pytest.approx(3 * 6.75 + 5.25 + 3 * host)
        found = pricing.generation({"policy": [one, write, ahead, ahead]}, {"policy": Costs()}, rate)
        assert found.parts["host"] == pytest.approx(host + waited) and found.ahead == 2
        assert (
            found.seconds == pytest.approx(3 * 6.75 + 5.25 + host + waited) == pytest.approx(sum(found.stages.values()))
        )


def test_a_call_without_a_step_is_of_the_stages_before_it():
    """A call that is dispatched ahead may find that all texts have ended: 0.5 + 1.5 + 0.25."""
    empty = tick(np.zeros(0), np.zeros(0), np.zeros((0, 3), int))
    found = pricing.generation({"policy": [tick([10], [8], [[0, 1, 0]]), empty]}, {"policy": Costs()}, RATE)
    assert found.steps == 1 and found.seconds == pytest.approx(6.75 + 2.25)
    assert found.stages[Stage.CRITIQUE] == pytest.approx(found.seconds)


def test_the_constants_are_fixed():
    rate, chip = pricing.rates(CHIPS["v6e"]), CHIPS["v6e"]
    assert rate == pricing.Rates(0.8 * chip.hbm_bandwidth, 0.6 * chip.flops, chip.ici_bandwidth, 1e-6, 5e-6)
    floor = pricing.rates(chip, hbm=1.0, peaks=True)
    assert floor == pricing.Rates(chip.hbm_bandwidth, chip.flops, chip.ici_bandwidth, 0.0, 0.0)
    assert pricing.rates(chip, host=1e-3) == dataclasses.replace(rate, host=1e-3)
    assert pricing.rates(chip, hbm=1.0, peaks=True, host=1e-3) == floor
