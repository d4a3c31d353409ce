"""What a real engine calls on its devices, as its programs see it, in the form in which a simulation records it."""

import numpy as np
import pytest

from cgrpo_jax.inference import slot_writes, slots
from cgrpo_jax.planning.simulation import Tick


def summary(calls):
    """Returns simulated calls as plain values: the program's shape, what each data group writes, steps and tokens."""
    found = []
    for one in calls:
        if isinstance(one, Tick):
            found.append(("tick", one.steps, one.tokens))
        elif isinstance(one, slot_writes.Prefill):
            rows = [[(p.slot, p.shared, len(p.rest)) for p in group] for group in one.groups]
            found.append(("prefill", one.rows, one.width, one.continued, rows))
        else:
            assert isinstance(one, slot_writes.Copy)
            found.append(("copy", one.width, [[(p.source, p.slot) for p in group] for group in one.groups]))
    return found


def watched(engine, run):
    """Returns what the engine's programs were called with while `run()` ran, and the lengths of the texts by index."""
    calls, lengths, S = [], {}, engine.num_slots
    real_step = engine.step

    def step():
        finished = real_step()
        for request, number, sampled in finished:
            lengths[request.indices[number]] = len(sampled.token_ids)
        return finished

    def prefill(params, state, tokens, length, start, slot, number, **keywords):
        rows, width = len(tokens) // len(number), tokens.shape[1]
        groups = [
            [(g * S + int(slot[i]), int(start[i]), int(length[i])) for i in range(g * rows, g * rows + number[g])]
            for g in range(len(number))
        ]
        calls.append(("prefill", rows, width, keywords["continued"], groups))
        return real["prefill"](params, state, tokens, length, start, slot, number, **keywords)

    def share(state, source, target, number, **keywords):
        groups = [
            [(g * S + int(source[i]), g * S + int(target[i])) for i in range(g * S, g * S + number[g])]
            for g in range(len(number))
        ]
        calls.append(("copy", keywords["width"], groups))
        return real["share"](state, source, target, number, **keywords)

    def tick(params, state, orders, *rest, **keywords):
        before = np.where(orders.begin_S, 0, np.asarray(state.sampled_S))
        state, report = real["tick"](params, state, orders, *rest, **keywords)
        calls.append(("tick", int(report.steps), int((np.asarray(report.sampled_S) - before).sum())))
        return state, report

    real = {name: getattr(slots, name) for name in ("prefill", "share", "tick")}
    with pytest.MonkeyPatch.context() as patch:
        for one in (prefill, share, tick):
            patch.setattr(slots, one.__name__, one)
        patch.setattr(engine, "step", step)
        run()
    return calls, lengths
