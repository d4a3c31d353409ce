"""What the calls of a simulated iteration take: seconds by what bounds them and by stage.

The constants are fixed here, before anything is compared by them. A chip reaches a share of its published peaks;
each operation that a program runs one after another takes a microsecond besides what it moves and computes, and each
call five. No TPU has confirmed them. What the host takes between two calls, which the devices wait for where they have
not been given the next one, is asked for (`rates`).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from cgrpo_jax.inference import slot_writes
from cgrpo_jax.planning.costs import Cost
from cgrpo_jax.planning.simulation import Call, Tick, prefilled
from cgrpo_jax.records import Stage
from cgrpo_jax.runtime.chips import Chip

# Of the published peaks: HBM and matrix units; links are at their peak.
HBM_SHARE, MATRIX_SHARE = 0.8, 0.6
OPERATION_SECONDS, DISPATCH_SECONDS = 1e-6, 5e-6
HBM_SHARES = (1.0, 0.8, 0.4)  # of the table
# Into which seconds are divided.
PARTS: tuple[str, ...] = (
    "prefill", "copies", "decode: weights", "decode: keys and values", "operations", "dispatch", "host",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rates:
    """What a device does in a second, and what an operation, a call and the host take besides.

    Attributes:
      hbm, flops, links: of a second.
      operation, dispatch: seconds of an operation, and of a call.
      host: seconds from the end of a call that decodes until the host has read it and dispatches what follows.
    """

    hbm: float
    flops: float
    links: float
    operation: float
    dispatch: float
    host: float = 0.0

    def seconds(self, cost: Cost) -> float:
        """Returns the seconds of what a program moves, computes and sends, the three at once; without operations."""
        sent = sum(cost.collectives.values())
        return max(cost.bytes / self.hbm, cost.flops / self.flops, sent / self.links)


def rates(chip: Chip, *, hbm: float = HBM_SHARE, peaks: bool = False, host: float = 0.0) -> Rates:
    """Returns the rates of a chip by the constants above.

    Args:
      chip: with its published limits.
      hbm: share of its HBM's bandwidth.
      peaks: matrix units at their peak too, and operations, calls and the host for nothing: the floor.
      host: seconds, as in `Rates`.
    """
    if peaks:
        return Rates(hbm * chip.hbm_bandwidth, chip.flops, chip.ici_bandwidth, 0.0, 0.0)
    flops = MATRIX_SHARE * chip.flops
    return Rates(hbm * chip.hbm_bandwidth, flops, chip.ici_bandwidth, OPERATION_SECONDS, DISPATCH_SECONDS, host)


@dataclasses.dataclass(frozen=True)
class DecodeCosts:
    """What decoding costs: a call, each of its steps, and each position of the cache that a step reads.

    How many positions that are, the cache says (`simulation.reads_of`).
    """

    call: Cost
    step: Cost
    position: Cost


class Costs(Protocol):
    """What the programs of an engine cost on one device."""

    @property
    def decode(self) -> DecodeCosts: ...

    def over_pages(self, tokens: int, rows: int) -> DecodeCosts: ...

    def prefill(self, call: slot_writes.Prefill) -> Cost: ...

    def copy(self, call: slot_writes.Copy) -> Cost: ...


@dataclasses.dataclass(frozen=True)
class Priced:
    """What one call takes.

    Attributes:
      parts: seconds, by `PARTS`.
      needed: seconds of the keys and values that the texts have, beside those that are read.
      stages: seconds, by stage.
    """

    parts: Mapping[str, float]
    needed: float
    stages: np.ndarray


def price(call: Call, costs: Costs, rate: Rates) -> Priced:
    """Returns what a call takes."""
    if not isinstance(call, Tick):
        name, cost = ("prefill", costs.prefill(call)) if isinstance(call, slot_writes.Prefill) else (
            "copies", costs.copy(call))  # fmt: skip
        parts = {name: rate.seconds(cost), "operations": cost.operations * rate.operation, "dispatch": rate.dispatch}
        texts = [one.request.stage for group in call.groups for one in group]
        shares = np.bincount(texts, minlength=len(Stage)) / len(texts)
        return Priced(parts, 0.0, sum(parts.values()) * shares)
    decode = costs.over_pages(call.entering, call.rows) if call.rows else costs.decode
    bounds = [_bounds(one, rate) for one in (decode.step, decode.position)]
    fixed, each = bounds[0].max(), bounds[1]
    # The three at once, step by step; what the positions add to a step without any is theirs.
    total_N = (bounds[0] + call.read_N[:, None] * each).max(-1)
    needed_N = (bounds[0] + call.needed_N[:, None] * each).max(-1)
    operations_N = rate.operation * (decode.step.operations + call.read_N * decode.position.operations)
    around = rate.operation * decode.call.operations
    alone = costs.over_pages(0, call.rows) if call.entering else decode
    entering = max(0.0, fixed - _bounds(alone.step, rate).max())
    parts = {
        "decode: weights": call.steps * (fixed - entering) + rate.seconds(decode.call),
        "decode: keys and values": float((total_N - fixed).sum()),
        "operations": float(operations_N.sum()) + around,
        "dispatch": rate.dispatch,
    }
    if call.entering:
        parts["prefill"] = call.steps * entering
        total = sum(parts.values())
        entered_3 = np.array(call.entered_3) / max(1, call.prompt_tokens)
        live_3 = call.live_N3[0] / call.live_N3[0].sum() if call.live_N3.any() else entered_3
        stages = parts["prefill"] * entered_3 + (total - parts["prefill"]) * live_3
        return Priced(parts, float((needed_N - fixed).sum()), stages)
    live_N3 = call.live_N3 / np.maximum(1, call.live_N3.sum(-1, keepdims=True))
    stages = ((total_N + operations_N)[:, None] * live_N3).sum(0)
    rest = sum(parts.values()) - stages.sum()
    return Priced(parts, float((needed_N - fixed).sum()), stages + rest * live_N3.mean(0) if call.steps else stages)


def _bounds(cost: Cost, rate: Rates) -> np.ndarray:
    return np.array([cost.bytes / rate.hbm, cost.flops / rate.flops, sum(cost.collectives.values()) / rate.links])


@dataclasses.dataclass(frozen=True)
class Generation:
    """What an iteration's generation takes.

    Attributes:
      seconds: in all.
      parts: of these, by `PARTS`.
      needed: what the keys and values take that the texts have, beside those that are read.
      stages: seconds by stage: of each step, by the texts of each that decode in it.
      tail: seconds after the last prompt was written, while slots run empty.
      occupancy: share of the slot-steps that sampled a token; `occupancy_waiting` while texts waited.
      tokens, steps: sampled, and of all calls.
      prompt_tokens, prompt_positions: of prompts that are prefilled, and with their padding.
      calls: how many.
      ahead: how many of them were dispatched before the call before was read.
    """

    seconds: float
    parts: Mapping[str, float]
    needed: float
    stages: Mapping[Stage, float]
    tail: float
    occupancy: float
    occupancy_waiting: float
    tokens: int
    steps: int
    prompt_tokens: int
    prompt_positions: int
    calls: int
    ahead: int


def generation(engines: Mapping[str, Sequence[Call]], costs: Mapping[str, Costs], rate: Rates) -> Generation:
    """Returns what an iteration's generation takes: all calls of all engines one after another.

    A call that is dispatched after the last was read waits for the host. One that is dispatched ahead waits only for
    what the host takes longer than the devices have to do, which is the call before.

    Args:
      engines: calls, by engine.
      costs: of the programs of each.
      rate: of a device.
    """
    parts, needed, stages, tail = dict.fromkeys(PARTS, 0.0), 0.0, np.zeros(len(Stage)), 0.0
    for name, calls in engines.items():
        late = max((i for i, call in enumerate(calls) if not isinstance(call, Tick) or call.waiting), default=-1)
        before, own = 0.0, 0.0  # what the devices do in the last step of the engine, and in this one
        shares = np.full(len(Stage), 1 / len(Stage))
        for i, call in enumerate(calls):
            found = price(call, costs[name], rate)
            taken = dict(found.parts)
            own += sum(taken.values())
            if isinstance(call, Tick):
                taken["host"] = max(0.0, rate.host - (before if call.ahead else 0.0))
                before, own = own, 0.0
            for part, seconds in taken.items():
                parts[part] += seconds
            in_all, spread = sum(taken.values()), found.stages.sum()
            shares = found.stages / spread if spread else shares  # a call without a step is of those before it
            needed, stages = needed + found.needed, stages + in_all * shares
            tail += in_all if i > late else 0.0
    every = [call for calls in engines.values() for call in calls]
    ticks = [call for call in every if isinstance(call, Tick)]
    positions, prompt_tokens = prefilled(every)

    def occupancy(some: Sequence[Tick]) -> float:
        slot_steps = sum(one.steps * one.num_slots for one in some)
        return sum(one.tokens for one in some) / slot_steps if slot_steps else 1.0

    return Generation(
        seconds=sum(parts.values()),
        parts=parts,
        needed=needed,
        stages={stage: float(stages[stage]) for stage in Stage},
        tail=tail,
        occupancy=occupancy(ticks),
        occupancy_waiting=occupancy([one for one in ticks if one.waiting]),
        tokens=sum(one.tokens for one in ticks),
        steps=sum(one.steps for one in ticks),
        prompt_tokens=prompt_tokens,
        prompt_positions=positions,
        calls=len(every),
        ahead=sum(one.ahead for one in ticks),
    )
