"""A simulated engine makes the calls that a real one makes on the same lengths, also where it dispatches ahead."""

import dataclasses

import engine_calls
import jax
import numpy as np
import pytest
import small_engine

from cgrpo_jax import sharding
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.paged.running import RunningPages
from cgrpo_jax.planning import simulation
from cgrpo_jax.planning.workload import Asked, Question
from cgrpo_jax.records import RowIndex, Stage

LENGTH = small_engine.LENGTH


def asked(prompt, indices, max_length=LENGTH):
    return Asked(np.asarray(prompt, np.int32), dict.fromkeys(indices, 0), max_length)


def alone(prompts, samples):
    """Questions whose responses all pass."""
    return [Question(asked(p, [RowIndex(q, n) for n in range(samples)])) for q, p in enumerate(prompts)]


def refined(prompts, samples, every=2):
    """Questions of which every second is critiqued and refined, response by response."""

    def chain(q, n, prompt):
        critique = asked(np.append(prompt, [3, 5])[-20:], [RowIndex(q, n, stage=Stage.CRITIQUE)], 4)
        refinement = asked(np.append(prompt, [3, 6])[-20:], [RowIndex(q, n, stage=Stage.REFINEMENT)])
        return ((critique,), (refinement,))

    found = []
    for question in alone(prompts, samples):
        q = next(iter(question.responses.tokens)).question
        chains = tuple(chain(q, n, prompts[q]) for n in range(samples))
        found.append(dataclasses.replace(question, phases=() if q % every else (chains,)))
    return found


def with_lengths(questions, lengths):
    """Returns the questions with texts of the lengths that came."""

    def known(one):
        return dataclasses.replace(one, tokens={index: lengths[index] for index in one.tokens})

    return [
        Question(
            known(one.responses),
            tuple(tuple(tuple(tuple(map(known, step)) for step in chain) for chain in phase) for phase in one.phases),
        )
        for one in questions
    ]


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize(
    "work, num_slots",
    [(alone(small_engine.MANY, 3), 3), (refined(small_engine.MANY[:6], 2), 3), (alone(small_engine.MANY, 6), 16)],
)
def test_calls_ticks_and_tokens_are_those_of_a_real_engine(work, num_slots, overlap):
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    engine = small_engine.engine(num_slots=num_slots, mesh=mesh, overlap=overlap)

    def run():
        engine.begin(small_engine.SPLIT, seed=17, iteration=5)
        simulation.ask(work, {"policy": engine})
        engine.end()

    real, lengths = engine_calls.watched(engine, run)
    stats = engine.take_stats()
    assert len(lengths) == sum(len(one.tokens) for question in work for one in question.all)
    assert len(set(lengths.values())) > 3  # some end by themselves, early or late
    found = simulation.simulate(with_lengths(work, lengths), {"policy": engine}, {"policy": small_engine.SPLIT})
    assert engine_calls.summary(found["policy"]) == real
    assert {"prefill", "copy", "tick"} <= {one[0] for one in real}
    ahead = [one.ahead for one in found["policy"] if isinstance(one, simulation.Tick)]
    assert any(ahead) is overlap and not ahead[0]
    simulated = engine.take_stats()
    for field in ("tokens", "prompt_tokens", "shared_tokens", "prefills", "slot_steps", "tokens_waiting"):
        assert getattr(simulated, field) == getattr(stats, field), field


def seen(call, report):
    """What a call over pages did: its program, steps, what enters, and what begins and is set back."""
    parts = [[(part.text.slot, part.start, part.end) for part in group] for group in call.parts]
    began, back = ([text.slot for text in texts] for texts in (call.begin, call.set_back))
    return call.tokens, int(report.steps), parts, began, back


def runs_of(kind, calls):
    """Returns the `run` of a class with a record of its calls."""
    real = kind.run

    def run(self, call, orders, until):
        report = real(self, call, orders, until)
        calls.append(seen(call, report))
        return report

    return run


@pytest.mark.parametrize("overlap", [False, True])
def test_calls_over_pages_are_those_of_a_real_engine(overlap, monkeypatch):
    """Pages of 4 for a text and a half in each of two groups, so that some are set back."""
    mesh = sharding.make_mesh(fsdp=2, devices=jax.devices()[:2])
    pages = Pages(12, 4, tokens=16, prompts=3, kernel=False)
    engine = small_engine.engine(num_slots=4, mesh=mesh, pages=pages, overlap=overlap)
    work, real, found = refined(small_engine.MANY[:6], 3), [], []
    monkeypatch.setattr(RunningPages, "run", runs_of(RunningPages, real))
    monkeypatch.setattr(simulation.SimulatedSlots, "run", runs_of(simulation.SimulatedSlots, found))

    def run():
        engine.begin(small_engine.SPLIT, seed=17, iteration=5)
        simulation.ask(work, {"policy": engine})
        engine.end()

    _, lengths = engine_calls.watched(engine, run)
    stats = engine.take_stats()
    calls = simulation.simulate(with_lengths(work, lengths), {"policy": engine}, {"policy": small_engine.SPLIT})
    assert found == real and len(calls["policy"]) == len(real)
    simulated = engine.take_stats()
    for field in ("tokens", "prompt_tokens", "shared_tokens", "prefills", "slot_steps", "tokens_waiting", "set_back"):
        assert getattr(simulated, field) == getattr(stats, field), field
    assert stats.set_back > 0 and any(one.ahead for one in calls["policy"]) is overlap
    positions, tokens = simulation.prefilled(calls["policy"])
    assert stats.reentered_tokens == simulated.reentered_tokens > 0
    assert tokens == stats.prompt_tokens + stats.reentered_tokens < positions == sum(2 * call[0] for call in real)
