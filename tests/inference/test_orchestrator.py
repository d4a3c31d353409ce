"""Many questions at once: none waits for a stage to end, slots go to responses first, a failure ends all."""

import gc

import pytest
from fake_engine import FakeEngine, key_of, token
from scripted_stages import ask, run, solve, texts

from cgrpo_jax.inference.orchestrator import Orchestrator, gather
from cgrpo_jax.records import Stage
from cgrpo_jax.runtime import watchdog

# --- results ------------------------------------------------------------------------------------------------------


def test_results_are_in_order_whoever_ends_first():
    engine = FakeEngine(lambda i: token(10 * i.question + i.response), steps=lambda i: 7 - i.question - i.response)
    asked = [texts(ask(engine, q, number=3)) for q in range(4)]
    assert run(*asked, engines=[engine]) == [[10 * q, 10 * q + 1, 10 * q + 2] for q in range(4)]
    assert not engine.busy


def test_each_tick_says_that_the_process_goes_on():
    engine = FakeEngine(steps=lambda i: 4)
    before = watchdog._state.steps
    run(texts(ask(engine, 0)), engines=[engine])
    assert watchdog._state.steps == before + 4


def test_nothing_to_run():
    assert run() == [] and run(engines=[FakeEngine()]) == []


async def value(number):
    return number


@pytest.mark.parametrize("number", [0, 1, 5])
def test_gather(number):
    async def all_of():
        return await gather([value(i) for i in range(number)])

    assert run(all_of(), all_of()) == [list(range(number))] * 2


def test_gather_within_gather():
    engine = FakeEngine(
        lambda i: token(100 * i.question + 10 * i.critique + i.response), steps=lambda i: 3 - i.critique
    )

    async def inner(q, c):
        first = await texts(ask(engine, q, critique=c))
        return first, await gather([]), await gather([texts(ask(engine, q, critique=c, number=2)), value(c)])

    async def outer(q):
        return await gather([inner(q, c) for c in range(3)])

    expected = [[([n], [], [[n, n + 1], c]) for c in range(3) for n in [100 * q + 10 * c]] for q in range(2)]
    assert run(*[outer(q) for q in range(2)], engines=[engine]) == expected


def test_what_is_gathered_goes_on_at_once():
    engine = FakeEngine(steps=lambda i: 4)

    async def one_by_one():
        for _ in range(3):
            await texts(ask(engine, 0))

    def steps(coroutine):
        engine.events.clear()
        run(coroutine, engines=[engine])
        return engine.events.count(("step",))

    assert (steps(three(engine)), steps(one_by_one())) == (4, 12)


async def three(engine):
    await gather([texts(ask(engine, q)) for q in range(3)])


# --- no barrier between the stages --------------------------------------------------------------------------------


def positions(engine):
    """Where in the schedule each request was made and each text ended."""
    added, done = {}, {}
    for at, (kind, *event) in enumerate(engine.events):
        if kind != "step":
            index = event[0].indices[0]
            (added if kind == "add" else done)[index.question, index.stage] = at
    return added, done


def test_a_question_goes_on_while_others_are_at_their_first_stage():
    engine = FakeEngine(steps=lambda i: 1 if i.question == 0 else 9)
    run(*[solve(engine, q) for q in range(6)], engines=[engine])
    added, done = positions(engine)
    for stage in (Stage.CRITIQUE, Stage.REFINEMENT):
        assert added[0, stage] < min(done[q, Stage.RESPONSE] for q in range(1, 6))
    assert done[0, Stage.REFINEMENT] < done[5, Stage.RESPONSE]
    assert added[0, Stage.CRITIQUE] == done[0, Stage.RESPONSE] + 1  # at once


def test_a_question_waits_for_all_texts_of_its_stage():
    engine = FakeEngine(steps=lambda i: 1 + 4 * i.response)
    run(solve(engine, 0, number=3), engines=[engine])
    kinds = [event[0] for event in engine.events]
    asks_again = kinds.index("add", 1)
    assert kinds[:asks_again].count("done") == 3 and kinds[asks_again - 1] == "done"


def test_responses_go_first_and_then_each_refinement_right_after_its_critique():
    """With one slot, which the refinement so finds as its critique has left it: what their prompts share is there."""
    engine = FakeEngine(num_slots=1)
    run(*[solve(engine, q) for q in range(3)], engines=[engine])
    ended = [key_of(event[1].indices[0]) for event in engine.events if event[0] == "done"]
    after = [(q, stage) for q in range(3) for stage in (Stage.CRITIQUE, Stage.REFINEMENT)]
    assert [(key[0], key[4]) for key in ended] == [(q, Stage.RESPONSE) for q in range(3)] + after


def test_two_engines_work_side_by_side():
    policy, critic = (
        FakeEngine(lambda i: token(1), steps=lambda i: 2),
        FakeEngine(lambda i: token(2), steps=lambda i: 3),
    )

    async def one(*engines):
        return [number for engine in engines for number in await texts(ask(engine, 0))]

    ticks = []
    asked = [one(policy, critic, policy), one(critic)]
    assert run(*asked, engines=[policy, critic], on_tick=ticks.append) == [[1, 2, 1], [2]]
    assert len(ticks) == 2 + 3 + 2  # the second critique is written beside the first question's response
    assert policy.events.count(("step",)) == 4 and critic.events.count(("step",)) == 5  # only who is busy


# --- failures -----------------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


async def broken(engine, q):
    await ask(engine, q)
    raise Broken


@pytest.mark.parametrize("nested", [False, True])
def test_an_exception_ends_the_run_and_leaves_nothing_behind(nested):
    """Neither coroutines that have begun nor those that have not; and the same parts can be used again."""
    engine, closed = FakeEngine(steps=lambda i: 1 + i.question), []

    async def waits(q):
        try:
            return await solve(engine, q)
        finally:
            closed.append(q)

    async def begins_others(q):
        await ask(engine, q)
        return await gather([waits(5), broken(engine, 0), waits(6)])

    # Question 2's children are made in the very pass in which question 1 fails.
    async def late():
        await ask(engine, 0)
        await ask(engine, 0)
        return await gather([waits(7), waits(8)])

    fails = begins_others(0) if nested else broken(engine, 1)
    shared = Orchestrator()
    engine.begin("weights")
    with pytest.raises(Broken):
        shared.run([fails, waits(3), late(), waits(9)], engines=[engine])
    engine.end()
    gc.collect()  # a coroutine that was never awaited says so when it goes
    assert {3, 9} <= set(closed)
    engine.begin("weights")
    assert shared.run([solve(engine, 0), solve(engine, 1)], engines=[engine]) == [[0, 0, 0]] * 2
    engine.end()


def test_children_that_have_not_begun_are_closed():
    async def fails():
        raise Broken

    async def parent():
        await gather([fails(), value(1), three(FakeEngine())])

    with pytest.raises(Broken):
        run(parent(), value(2))
    gc.collect()


def test_a_request_that_the_engine_refuses_ends_the_run():
    engine = FakeEngine()

    def refuse(request):
        raise Broken

    engine.add = refuse
    with pytest.raises(Broken):
        run(solve(engine, 0), solve(engine, 1), value(3), engines=[engine])
    gc.collect()


def test_what_is_called_at_a_tick_can_end_the_run():
    engine = FakeEngine(steps=lambda i: 4)

    def stop(status):
        raise Broken

    with pytest.raises(Broken):
        run(solve(engine, 0), solve(engine, 1), engines=[engine], on_tick=stop)
    assert engine.events.count(("step",)) == 1
    gc.collect()


class Foreign:
    def __await__(self):
        yield "something"


async def foreign():
    await Foreign()


async def elsewhere():
    await ask(FakeEngine(), 0)  # an engine that the run was not given


@pytest.mark.parametrize("coroutine", [foreign, elsewhere])
def test_waiting_for_something_foreign_raises(coroutine):
    engine = FakeEngine()
    with pytest.raises(RuntimeError, match="is none of the orchestrator's"):
        run(coroutine(), solve(engine, 1), engines=[engine])
    gc.collect()


# --- status -------------------------------------------------------------------------------------------------------


def test_status():
    engine = FakeEngine(steps=lambda i: 1 + i.question + i.response, num_slots=2)
    other, seen = FakeEngine(num_slots=3), []
    asked = [solve(engine, q, (Stage.RESPONSE, Stage.CRITIQUE), number=2) for q in range(4)]
    run(*asked, engines=[engine, other], on_tick=seen.append)
    # Question 0 has both slots. Its first text ends at once; its second and the first of question 1 go on.
    assert [(one.tokens, one.live, one.waiting) for one in seen[:2]] == [(2, 1, {0: 6}), (4, 1, {0: 5})]
    assert seen[2].waiting == {Stage.RESPONSE: 4, Stage.CRITIQUE: 2}  # its critiques wait for the other responses
    assert {(one.total, one.slots) for one in seen} == {(4, 5)}
    done = [one.done for one in seen]
    assert done == sorted(done) and done[0] == 0 and done[-1] == 3  # the last ends after the last tick
    tokens = [one.tokens for one in seen]
    assert tokens == sorted(tokens) and tokens[-1] == 2 * (3 + 5 + 7 + 9)
    assert 0 <= seen[0].seconds <= seen[-1].seconds
