"""The scheduler, played against slots that hold tokens: whatever comes, each text finds its prompt where it begins."""

import collections

import numpy as np
import pytest

from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.inference.slot_scheduler import Scheduler, width_of, widths_up_to
from cgrpo_jax.records import RowIndex, Stage

GARBAGE = -1  # what padding leaves in a slot


ORDER = [Stage.RESPONSE, Stage.REFINEMENT, Stage.CRITIQUE]  # of stages, in which they are written


def request(prompt, samples=1, stage=Stage.RESPONSE):
    indices = [RowIndex(question=0, response=n, stage=stage) for n in range(samples)]
    return Request(np.array(prompt, np.int32), indices, 9)


def scheduler(*, num_groups=1, num_slots=4, longest=64, smallest=8, length=64):
    return Scheduler(num_groups=num_groups, num_slots=num_slots, widths=widths_up_to(longest, smallest), length=length)


class Slots:
    """What the devices would hold, as arrays; what is placed is written in the order that `Scheduler.place` gives."""

    def __init__(self, made: Scheduler, rng):
        self.scheduler, self.rng = made, rng
        self.held = np.full((made.num_groups * made.num_slots, made.length), GARBAGE)
        self.live = {}  # slot -> its text
        self.prefills = collections.Counter()

    def write(self, placed):
        s, taken = self.scheduler, [one.slot for one in placed]
        assert len(set(taken)) == len(taken) and not set(taken) & self.live.keys()
        fresh = [one for one in placed if one.source is None]
        copied = [one for one in placed if one.source not in (None, one.slot)]
        for one in placed:
            whole = len(one.request.prompt_ids) - 1
            assert 0 <= one.shared <= whole and len(one.rest) == whole - one.shared
            assert one.shared == 0 or one.source is not None
            if one.source is not None:
                assert one.source // s.num_slots == one.slot // s.num_slots
                assert one.shared == whole or width_of(whole - one.shared, s.widths) < width_of(whole, s.widths)
            self.prefills[one.request] += bool(len(one.rest))
        # Within a step any order must do: programs take what has the same width together.
        for one in self.shuffled(fresh):
            self.put(one.slot, 0, one.rest)
        for one in self.shuffled(copied):
            width = width_of(one.shared, s.widths) if one.shared else 0
            self.held[one.slot, :width] = self.held[one.source, :width]
        for one in self.shuffled([one for one in placed if one.source is not None]):
            self.put(one.slot, one.shared, one.rest)
        for one in placed:
            prompt = one.request.prompt_ids
            np.testing.assert_array_equal(self.held[one.slot, : len(prompt) - 1], prompt[:-1])
            self.live[one.slot] = list(prompt)
            assert s.occupant(one.slot) == (one.request, one.number)

    def put(self, slot, start, tokens):
        if len(tokens):
            width = width_of(len(tokens), self.scheduler.widths)
            assert start + width <= self.scheduler.length
            self.held[slot, start : start + width] = GARBAGE
            self.held[slot, start : start + len(tokens)] = tokens

    def shuffled(self, items):
        return [items[i] for i in self.rng.permutation(len(items))]

    def decode(self, share):
        """Appends a token to each text, from the last of its prompt on, and ends some."""
        for slot, text in list(self.live.items()):
            np.testing.assert_array_equal(self.held[slot, : len(text) - 1], text[:-1])
            self.held[slot, len(text) - 1] = text[-1]
            text.append(int(self.rng.integers(50, 60)))
            if len(text) == self.scheduler.length or self.rng.random() < share:
                self.scheduler.free(slot)
                del self.live[slot]


def workload(rng, number, longest):
    """Prompts that often begin alike, that are beginnings of others, and that come again."""
    made = []
    for _ in range(number):
        prompt = rng.integers(0, 4, rng.integers(1, longest + 1))
        if made and rng.random() < 0.7:
            other = made[rng.integers(len(made))].prompt_ids
            prompt = np.concatenate([other[: rng.integers(0, len(other) + 1)], prompt])[:longest]
        if made and rng.random() < 0.1:
            prompt = made[rng.integers(len(made))].prompt_ids.copy()
        made.append(request(prompt, int(rng.integers(1, 7)), ORDER[rng.integers(0, 3)]))
    return made


def play(seed):
    """Lets a random workload through; returns what was placed, one list a call."""
    rng = np.random.default_rng(seed)
    longest = int(rng.integers(8, 64))
    made = scheduler(
        num_groups=int(rng.integers(1, 4)),
        num_slots=int(rng.integers(1, 8)),
        longest=longest,
        smallest=int(rng.choice([1, 4, 8, 100])),
        length=int(rng.integers(longest + 1, 80)),
    )
    slots, coming = Slots(made, rng), workload(rng, 30, longest)
    name = {id(one): number for number, one in enumerate(coming)}
    queue, history, begun, parts = [], [], {}, collections.Counter()
    while coming or made.waiting or made.live:
        for _ in range(min(len(coming), rng.integers(0, 4))):
            queue.append(coming.pop())
            made.add(queue[-1])
        queue.sort(key=lambda one: ORDER.index(one.stage))  # stable: of equal ones the first to come stays the first
        while placed := made.place():
            history.append([(one.slot, name[id(one.request)], one.number, one.source, one.shared) for one in placed])
            for one in placed:
                if one.number == 0:
                    assert queue.pop(0) is one.request, "not the first of the first stage"
                numbers = begun.setdefault(one.request, {})
                assert one.number not in numbers
                group = one.slot // made.num_slots
                numbers[one.number] = group
                parts[one.request] += numbers.get(one.number - 1) != group
            slots.write(placed)
        # Whoever waits does so because no slot is free.
        waiting = sum(len(one.indices) for one in queue)
        waiting += sum(len(one.indices) - len(numbers) for one, numbers in begun.items())
        assert made.live == len(slots.live) and made.waiting == waiting
        assert not waiting or made.live == len(slots.held)
        slots.decode(rng.choice([0.05, 0.3]))
    assert all(sorted(numbers) == list(range(len(one.indices))) for one, numbers in begun.items()) and len(begun) == 30
    for one, prefills in slots.prefills.items():  # all samples that a group writes one after another share one
        assert prefills <= (parts[one] if made.num_groups > 1 else 1)
    return history


@pytest.mark.parametrize("seed", range(40))
def test_every_text_finds_its_prompt_whatever_comes(seed):
    play(seed)


def test_the_same_requests_and_lengths_give_the_same_schedule():
    """Processes decide each for itself."""
    assert play(3) == play(3)


def test_random_workloads_reach_every_way_to_fill_a_slot():
    placed = [one for seed in range(10) for call in play(seed) for one in call]
    ways = {(source is None, source == slot, shared > 0) for slot, _, _, source, shared in placed}
    assert len(ways) == 5  # afresh; from itself or from another slot, something or nothing


# --- by hand ------------------------------------------------------------------------------------------------------


def placements(made):
    """What goes where, in all calls until nothing more can be placed."""
    out = []
    while placed := made.place():
        out.append([(one.slot, one.number, one.source, one.shared, len(one.rest)) for one in placed])
    return out


def test_samples_are_prefilled_once_and_copied():
    made = scheduler(num_slots=3)
    made.add(request(range(10), samples=5))
    assert placements(made) == [[(0, 0, None, 0, 9), (1, 1, 0, 9, 0), (2, 2, 0, 9, 0)]]
    assert (made.live, made.waiting) == (3, 2)
    made.free(1)
    assert placements(made) == [[(1, 3, 0, 9, 0)]]  # which holds the prompt, and is not asked whether it does itself
    for slot in range(3):
        made.free(slot)
    assert placements(made) == [[(0, 4, 0, 9, 0)]]
    assert (made.live, made.waiting) == (1, 0)


def test_a_common_beginning_is_shared_only_where_that_spares_a_width():
    common = list(range(20))
    made = scheduler()
    made.add(request([*common, *range(30, 38)]))  # 27 tokens: width 32
    made.add(request([*common, *range(40, 48)]))  # 7 more: width 8
    made.add(request([*common[:5], *range(50, 70)]))  # 5 shared of 24: width 32 still
    assert placements(made) == [[(0, 0, None, 0, 27), (1, 0, 0, 20, 7), (2, 0, None, 0, 24)]]


def test_the_longest_common_beginning_is_taken():
    common = list(range(40))
    made = scheduler()
    made.add(request([*common[:16], *range(50, 60)]))
    made.add(request([*common, 49, 50]))
    made.add(request([*common, 51, 52, 53]))
    # 16 of 41 tokens leave 25, of width 32 instead of 64; 40 of 42 leave 2.
    assert placements(made) == [[(0, 0, None, 0, 25), (1, 0, 0, 16, 25)], [(2, 0, 1, 40, 2)]]


def test_what_is_continued_in_a_call_is_copied_in_the_next():
    common = list(range(20))
    made = scheduler()
    made.add(request([*common, 30]))
    made.add(request([*common, *range(40, 48)], samples=2))
    assert placements(made) == [[(0, 0, None, 0, 20), (1, 0, 0, 20, 7)], [(2, 1, 1, 27, 0)]]


def test_padding_after_a_shared_beginning_stays_within_the_slot():
    """40 + 16 positions do not fit a slot of 50: so only 34 are shared, and 15 tokens are prefilled."""
    made = scheduler(longest=50, length=50)
    made.add(request(range(50)))
    made.add(request([*range(40), *range(60, 70)]))
    assert placements(made) == [[(0, 0, None, 0, 49), (1, 0, 0, 34, 15)]]


def test_a_free_slot_that_holds_the_prompt_is_used_again():
    made = scheduler(num_slots=3)
    made.add(request(range(10)))
    made.add(request(range(20, 30)))
    assert placements(made) == [[(0, 0, None, 0, 9), (1, 0, None, 0, 9)]]
    made.free(1)
    made.add(request(range(20, 30)))
    made.add(request(range(20, 30)))
    assert placements(made) == [[(1, 0, 1, 9, 0), (2, 0, 1, 9, 0)]]


def test_a_beginning_is_not_taken_from_what_has_been_overwritten():
    made = scheduler(num_slots=1)
    for prompt in (range(10), range(20, 30), range(10)):
        made.add(request(prompt))
        assert placements(made) == [[(0, 0, None, 0, 9)]]
        made.free(0)


def test_responses_go_before_refinements_and_these_before_critiques_each_in_order():
    made = scheduler(num_slots=1)
    stages = [Stage.CRITIQUE, Stage.REFINEMENT, Stage.CRITIQUE, Stage.RESPONSE, Stage.REFINEMENT]
    requests = [request([n], stage=stage) for n, stage in enumerate(stages)]
    for one in requests:
        made.add(one)
    order = []
    while placed := made.place():
        order += [int(one.request.prompt_ids[0]) for one in placed]
        made.free(0)
    assert order == [3, 1, 4, 0, 2]


def test_groups_take_turns_by_the_free_slots_they_have_and_never_share():
    made = scheduler(num_groups=2, num_slots=2)
    for _ in range(3):
        made.add(request(range(10), samples=2))
    assert placements(made) == [[(0, 0, None, 0, 9), (1, 1, 0, 9, 0), (2, 0, None, 0, 9), (3, 1, 2, 9, 0)]]
    made.free(2)
    assert placements(made) == [[(2, 0, 2, 9, 0)]]  # group 1 has free slots, and the prompt already
    made.free(3)
    assert placements(made) == [[(3, 1, 2, 9, 0)]]


def test_prompts_that_come_together_are_spread_over_the_groups():
    made = scheduler(num_groups=2, num_slots=3)
    for n in range(4):
        made.add(request(range(10 * n, 10 * n + 10)))
    assert [slot for slot, *_ in placements(made)[0]] == [0, 3, 1, 4]


def test_a_group_with_free_slots_takes_over_from_one_without():
    """The last of what is left, as many as it has slots; each group prefills the prompt for itself."""
    made = scheduler(num_groups=2, num_slots=2)
    made.add(request(range(10), samples=7))
    assert placements(made) == [[(0, 0, None, 0, 9), (1, 1, 0, 9, 0), (2, 5, None, 0, 9), (3, 6, 2, 9, 0)]]
    made.free(2)
    assert placements(made) == [[(2, 4, 2, 9, 0)]]
    made.add(request(range(20, 30)))
    made.free(3)
    assert placements(made) == [[(3, 0, None, 0, 9)]]  # what has not begun goes first
    for slot in (0, 1):
        made.free(slot)
    assert placements(made) == [[(0, 2, 0, 9, 0), (1, 3, 0, 9, 0)]]
    assert made.waiting == 0


def test_a_prompt_of_one_token_needs_nothing():
    made = scheduler(num_slots=2)
    made.add(request([7], samples=2))
    assert [rest for call in placements(made) for *_, rest in call] == [0, 0]


@pytest.mark.parametrize(
    "longest, smallest, widths",
    [(600, 64, (64, 128, 256, 512, 600)), (64, 64, (64,)), (5, 64, (5,)), (65, 64, (64, 65)), (4, 1, (1, 2, 4))],
)
def test_widths(longest, smallest, widths):
    assert widths_up_to(longest, smallest) == widths
