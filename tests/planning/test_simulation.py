"""What a simulated engine's devices do, by hand, and what an iteration writes; a real engine beside it: integration."""

import dataclasses

import numpy as np
import pytest
import rollout_cases
from tiny import EVERYTHING

from cgrpo_jax import sharding
from cgrpo_jax.datasets import rollouts
from cgrpo_jax.errors import UserError
from cgrpo_jax.inference import slots
from cgrpo_jax.inference.engine import Engine
from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.running_slots import Until
from cgrpo_jax.models import params as params_lib
from cgrpo_jax.planning import simulation, workload
from cgrpo_jax.records import Author, RowIndex, Stage


def tick(
    lengths,
    *,
    num_slots=4,
    until=1,
    unread=9,
    held=(),
    chunk=8,
    split=False,
    length=2048,
    started=100,
    reads=None,
    pages=None,
):
    """One tick of one data group: the texts begin at `started` tokens and end after `lengths`, `held` ended before."""
    settings = slots.EngineSettings(
        EVERYTHING, sharding.one_device(), (0,), num_slots, length, chunk, "float32", split, pages
    )
    calls, known = [], {(q, 0, 0, 0, 0, 0): tokens for q, tokens in enumerate(lengths)}
    simulated = simulation.SimulatedSlots(
        None, settings, widths=(64,), seed=0, iteration=0, sampling=(), lengths=known, reads=reads, calls=calls,
        waiting=lambda: 0,
    )  # fmt: skip
    begin = np.arange(num_slots) < len(lengths)
    index = np.zeros((num_slots, 6), np.int32)
    index[: len(lengths), 0] = range(len(lengths))
    full = np.full(num_slots, started, np.int32)
    occupied = begin | np.isin(np.arange(num_slots), held)
    report = simulated.tick(slots.Orders(begin, ~begin, occupied, full, full, full, index), Until(until, unread))
    return calls[0], report


def test_a_tick_ends_with_the_text_that_is_waited_for():
    assert tick([3, 7, 5])[0].steps == 3
    assert tick([3, 7, 5], until=2)[0].steps == 5
    assert tick([3, 7, 5], until=9)[0].steps == 7  # when all have ended
    assert tick([30, 70], until=1)[0].steps == 8  # a chunk
    assert tick([])[0].steps == 0


def test_a_tick_counts_texts_that_ended_before_and_that_the_host_has_not_read():
    assert tick([3, 7, 5], until=2, unread=2, held=[3])[0].steps == 3
    assert tick([3, 7, 5], until=1, unread=3, held=[3])[0].steps == 3
    assert tick([3, 7, 5], until=1, unread=1, held=[3])[0].steps == 1  # never none: the devices don't wait
    assert tick([], held=[2, 3], unread=1)[0].steps == 0


def test_what_a_step_reads_is_what_the_cache_says():
    """By hand: four slots are read 512 positions at a time, as far as the longest text reaches; two have 511 each."""
    found, report = tick([2, 3], started=511)
    assert found.read_N.tolist() == [4 * 512, 4 * 1024]  # the second token lies at position 512
    assert found.needed_N.tolist() == [2 * 512, 2 * 513]
    assert found.live_N3.tolist() == [[2, 0, 0], [2, 0, 0]]
    assert report.live_S.tolist() == [False, True, False, False] and report.sampled_S.tolist() == [2, 2, 0, 0]
    assert report.tokens_CS[1, 0] == 0 and report.tokens_CS[0, 0] != 0  # it ends by itself


@pytest.mark.parametrize(("split", "length"), [(False, 300), (True, 2000)])
def test_a_short_slot_is_read_whole(split, length):
    assert tick([2, 2], split=split, length=length)[0].read_N.tolist() == [4 * length] * 2


def test_another_cache_is_read_as_it_says():
    def pages(length_NS, live_NS):  # of 4 positions
        return np.where(live_NS, -(-(length_NS + 1) // 4) * 4, 0).sum(-1)

    found, _ = tick([2, 9], started=11, reads=pages)
    assert found.read_N.tolist() == [12 + 12, 16 + 16] and found.needed_N.tolist() == [24, 26]


def test_with_pages_a_step_reads_each_text_as_far_as_it_goes():
    """One that has ended stays for the rest of the call, as a block; what was never there costs nothing."""
    pages = Pages(100, 64, tokens=64, prompts=3, kernel=False)
    found, _ = tick([2, 3], started=255, num_slots=4, until=2, pages=pages)
    assert found.read_N.tolist() == [2 * 256, 2 * 512, 512 + 256] and found.needed_N.tolist() == [2 * 256, 2 * 257, 258]


@pytest.mark.parametrize("pages", [None, Pages(400, 8, tokens=64, prompts=3, kernel=False)], ids=["slots", "pages"])
@pytest.mark.parametrize("num_slots, most, together", [(4, 1.2, False), (64, 1.1, False), (64, 1.2, True)])
def test_what_a_call_that_is_dispatched_ahead_costs(pages, num_slots, most, together):
    """The slot of a text that has ended idles for a call more, or for a step where many end together."""
    rng, params = np.random.default_rng(0), params_lib.param_shapes(EVERYTHING)
    lengths = np.clip(np.exp(rng.normal(1.8, 0.9, 600)), 1, 40).astype(int)
    lengths = np.where(np.arange(600) % 64, 24, 40) if together else lengths
    prompts = rng.integers(0, EVERYTHING.vocab_size, (600, 4))
    asked = [workload.Asked(prompts[q], {RowIndex(q): int(n)}, 40) for q, n in enumerate(lengths)]
    steps = []
    for overlap in (False, True):
        engine = Engine(
            EVERYTHING,
            eos_ids=(),
            num_slots=num_slots,
            length=44,
            longest_prompt=4,
            chunk=16,
            pages=pages,
            overlap=overlap,
        )
        questions = [workload.Question(one) for one in asked]
        calls = simulation.simulate(questions, {"policy": engine}, {"policy": params})["policy"]
        stats = engine.take_stats()
        assert stats.tokens == lengths.sum()
        ticks = [one for one in calls if isinstance(one, simulation.Tick)]
        assert sum(one.ahead for one in ticks) == (len(ticks) - 1 if overlap else 0)
        steps.append(stats.slot_steps)
    assert 1 < steps[1] / steps[0] < most


# --- what an iteration writes -------------------------------------------------------------------------------------

SHAPE = workload.Shape(
    num_questions=20,
    num_responses=3,
    num_critiques=1,
    num_refinements=1,
    critiques_all=False,
    max_prompt=dict.fromkeys(Stage, 1000),
    max_length=dict.fromkeys(Stage, 400),
)


def drawn(shape=SHAPE, failed=0.25, seed=0):
    draws = {name: workload.parse("lognormal(mean=100, sigma=0.8)") for name in ("prompts", "texts", "critiques")}
    return workload.drawn(shape, **draws, failed=failed, seed=seed)


def texts(questions, stage):
    return [n for one in questions for each in one.all if each.stage == stage for n in each.tokens.values()]


def test_a_share_of_the_questions_is_refined():
    found = drawn()
    assert [len(texts(found, stage)) for stage in Stage] == [60, 15, 15]
    assert sum(bool(one.phases) for one in found) == 5
    every = [n for stage in Stage for n in texts(found, stage)]
    assert max(every) <= 400 and min(every) >= 16 and len(set(every)) > 20
    assert [texts(drawn(), stage) for stage in Stage] == [texts(found, stage) for stage in Stage]
    assert texts(drawn(seed=1), Stage.RESPONSE) != texts(found, Stage.RESPONSE)


def test_all_responses_are_critiqued_where_a_run_does():
    found = drawn(dataclasses.replace(SHAPE, critiques_all=True))
    assert [len(texts(found, stage)) for stage in Stage] == [60, 60, 15]
    assert {len(one.phases) for one in found} == {1, 2}


def test_a_rule_writes_no_critique():
    assert [len(texts(drawn(dataclasses.replace(SHAPE, num_critiques=0)), stage)) for stage in Stage] == [60, 0, 15]
    assert [len(texts(drawn(dataclasses.replace(SHAPE, num_refinements=0)), stage)) for stage in Stage] == [60, 0, 0]


def test_a_prompt_has_what_it_quotes():
    question = next(one for one in drawn() if one.phases)
    ((critique,), (refinement,)) = question.phases[0][1]
    asks, response = len(question.responses.prompt_ids), list(question.responses.tokens.values())[1]
    (said,) = critique.tokens.values()
    assert len(critique.prompt_ids) == asks + 120 + response
    assert len(refinement.prompt_ids) == len(critique.prompt_ids) + 100 + said


def test_rollouts_give_their_last_iteration_attempt_by_attempt(tmp_path):
    for number in (0, 3):
        path = tmp_path / rollouts.file_name(number)
        rollouts.write(path, rollout_cases.make(), iteration=number, spell=rollout_cases.spell)
    (question,), file = workload.of_rollouts(tmp_path, SHAPE)  # of the other question no text was sampled
    assert file == path
    assert list(question.responses.tokens.values()) == [6, 2] and question.responses.prompt_ids.tolist() == [1, 7, 2]
    ((chain,),) = question.phases  # what a rule or an endpoint wrote is left out
    steps = [[(one.stage, one.prompt_ids.tolist(), list(one.tokens.values())) for one in step] for step in chain]
    assert steps == [
        [(Stage.CRITIQUE, [1, 8, 8, 2], [2])],
        [(Stage.CRITIQUE, [1, 8, 8, 2], [2])],  # written again
        [(Stage.REFINEMENT, [1, 9, 2], [2, 2])],
        [(Stage.CRITIQUE, [1, 6, 2], [2])],  # of a refinement
    ]


def test_refinements_of_a_frozen_refiner_are_simulated_too(tmp_path):
    def of_refiner(row):
        one = row.rollout
        refined = one.stage == Stage.REFINEMENT and one.author == Author.POLICY
        return dataclasses.replace(row, rollout=one.replace(author=Author.REFINER)) if refined else row

    made = [of_refiner(row) for row in rollout_cases.make()]
    rollouts.write(tmp_path / rollouts.file_name(0), made, iteration=0, spell=rollout_cases.spell)
    (question,), _ = workload.of_rollouts(tmp_path, SHAPE)
    assert len(texts([question], Stage.REFINEMENT)) == 2


def test_rollouts_that_no_model_sampled_are_refused(tmp_path):
    made = rollout_cases.make()[-1:]
    made = [dataclasses.replace(made[0], rollout=made[0].rollout.replace(parent=None))]
    rollouts.write(tmp_path / rollouts.file_name(0), made, iteration=0, spell=rollout_cases.spell)
    with pytest.raises(UserError, match="holds no response that a model sampled"):
        workload.of_rollouts(tmp_path, SHAPE)


def test_distributions():
    rng = np.random.default_rng(0)
    assert workload.parse("fixed(1000)")(rng, 3).tolist() == [1000] * 3
    found = workload.parse("uniform(min=8, max=10)")(rng, 1000)
    assert set(found.tolist()) == {8, 9, 10}
    found = workload.parse("lognormal(mean=1500, sigma=0.8)")(rng, 200_000)
    assert found.mean() == pytest.approx(1500, rel=0.02) and np.std(np.log(found)) == pytest.approx(0.8, rel=0.02)
    assert workload.parse("lognormal(mean=1500,sigma=0.8,max=600)")(rng, 1000).max() == 600


@pytest.mark.parametrize(
    "text",
    ["", "normal(mean=1)", "lognormal(mean=1500)", "fixed()", "fixed(0)", "fixed(nan)", "uniform(min=9, max=8)",
     "lognormal(mean=1, sigma=1, mean=2)", "lognormal(mean=1, sigma=1, least=2)", "fixed(=3)", "uniform(8, 64)"],
)  # fmt: skip
def test_what_is_no_distribution(text):
    with pytest.raises(UserError, match=r"are no distribution; write lognormal\(mean=1500"):
        workload.parse(text)
