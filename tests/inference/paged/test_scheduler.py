"""The scheduler of pages, played against pages that hold tokens: each text finds all of itself, and nothing leaks.

Also where it hears what a call has sampled, and which texts it has ended, only after it has decided the next.
"""

import collections

import numpy as np
import pytest

from cgrpo_jax.inference.paged.cache import Pages
from cgrpo_jax.inference.paged.call_sizes import row_counts, token_counts
from cgrpo_jax.inference.paged.scheduler import PageScheduler
from cgrpo_jax.inference.request_queue import Request
from cgrpo_jax.records import RowIndex, Stage

ORDER = [Stage.RESPONSE, Stage.REFINEMENT, Stage.CRITIQUE]


def request(prompt, samples=1, stage=Stage.RESPONSE, most=9):
    indices = [RowIndex(question=0, response=n, stage=stage) for n in range(samples)]
    return Request(np.array(prompt, np.int32), indices, most)


def scheduler(*, num_groups=1, num_slots=4, number=20, size=4, tokens=16, prompts=3, length=64):
    pages = Pages(number, size, tokens, prompts, kernel=False)
    return PageScheduler(num_groups=num_groups, num_slots=num_slots, pages=pages, length=length)


class Devices:
    """What the pages hold, as tokens; a call copies, writes what enters, and then decodes."""

    def __init__(self, made: PageScheduler, rng):
        self.made, self.rng, size = made, rng, made.pages.size
        self.held = np.full((made.num_groups, made.pages.number, size), -1)
        self.texts = {}  # slot -> its tokens
        self.so_far = {}
        self.entered = collections.Counter()

    def at(self, text, position):
        size = self.made.pages.size
        return text.group, text.pages[position // size], position % size

    def put(self, text, position, token):
        group, page, _ = at = self.at(text, position)
        assert page and self.made._groups[group].pool._holders[page]
        size = self.made.pages.size
        for other in self.made._groups[group].texts:  # what others that decode have read stays as it is
            if other is not text and other.slot in self.texts and page in other.pages:
                has = len(self.texts[other.slot]) - 1
                assert self.held[at] == token or other.pages.index(page) * size + at[2] >= has
        self.held[at] = token

    def run(self, call):
        made = self.made
        assert call.tokens in (0, *token_counts(made.pages.tokens, made.num_groups))
        for text in call.set_back:
            if text.begun:
                self.so_far[text] = self.texts.pop(text.slot)
                text.context = np.array(self.so_far[text], np.int32)
        for text in call.begin:
            if text.copied is not None:
                page = text.pages[text.length // made.pages.size]
                self.held[text.group, page] = self.held[text.group, text.copied]
        for text in call.begin:
            made.copied(text)
        for parts in call.parts:
            assert sum(part.end - part.start for part in parts) <= call.tokens and len(parts) <= made.pages.prompts
            for part in parts:
                self.entered[part.text.request] += part.end - part.start
                for position in range(part.start, part.end):
                    self.put(part.text, position, int(part.text.context[position]))
        for text in call.begin:
            assert text.slot not in self.texts
            self.texts[text.slot] = list(text.context)
            assert call.steps == 1 or not call.tokens
        assert set(call.decoding) == set(made.begun())
        for text in call.decoding:
            if text.slot in self.texts:  # else it has ended, of which the scheduler has not heard
                self.decode(text, call.steps)
        sampled = np.zeros(made.num_groups * made.num_slots, int)
        for slot, tokens in self.texts.items():
            sampled[slot] = len(tokens) - len(made.text(slot).request.prompt_ids)
        return sampled

    def decode(self, text, steps):
        tokens = self.texts[text.slot]
        most = len(text.request.prompt_ids) + text.request.max_length
        for _ in range(min(steps, most - len(tokens))):
            self.put(text, len(tokens) - 1, tokens[-1])
            np.testing.assert_array_equal([self.held[self.at(text, i)] for i in range(len(tokens))], tokens)
            tokens.append(int(self.rng.integers(50, 60)))

    def end(self, share):
        """Ends the texts that are as long as they may be, and some others; returns them."""
        ended = []
        for slot, tokens in list(self.texts.items()):
            text = self.made.text(slot)
            if len(tokens) == text.most + 1 or self.rng.random() < share:
                ended.append(text)
                del self.texts[slot]
        return ended

    def tell(self, call, sampled, ended):
        """Lets the scheduler hear what a call has done."""
        self.made.record(call, sampled)
        for text in ended:
            assert self.made.occupant(text.slot) == (text.request, text.number)
            self.made.free(text.slot)


def workload(rng, number, longest):
    """Prompts that often begin alike, and that come again."""
    made = []
    for _ in range(number):
        prompt = rng.integers(0, 4, rng.integers(1, longest + 1))
        if made and rng.random() < 0.7:
            other = made[rng.integers(len(made))].prompt_ids
            prompt = np.concatenate([other[: rng.integers(0, len(other) + 1)], prompt])[:longest]
        if made and rng.random() < 0.1:
            prompt = made[rng.integers(len(made))].prompt_ids.copy()
        most = int(rng.integers(1, 40))
        made.append(request(prompt, int(rng.integers(1, 7)), ORDER[rng.integers(0, 3)], most))
    return made


def play(seed, *, tight=False, ahead=False):
    """Lets a random workload through; returns the scheduler, and what each call began.

    Args:
      tight: the pages hold the longest text and no more.
      ahead: each call is decided before the scheduler hears what the last has done.
    """
    rng = np.random.default_rng(seed)
    size, longest = int(rng.choice([1, 3, 8, 40])), int(rng.integers(4, 60))
    coming = workload(rng, 25, longest)
    length = max(len(one.prompt_ids) + one.max_length for one in coming) if tight else longest + 40
    made = scheduler(
        num_groups=int(rng.integers(1, 4)), num_slots=int(rng.integers(1, 8)), size=size, length=length,
        number=1 + -(-length // size) + (0 if tight else int(rng.integers(0, 2 + 100 // size))),
        tokens=int(rng.integers(1, 80)), prompts=int(rng.integers(1, 5)),
    )  # fmt: skip
    devices, began = Devices(made, rng), collections.Counter()
    every, history, idle, untold, refused = list(coming), [], 0, [], 0
    while coming or made.waiting or made.live:
        for _ in range(min(len(coming), rng.integers(0, 4))):
            made.add(coming.pop())
        if not made.waiting and not made.live:
            continue
        call = made.next_call(int(rng.integers(1, 9)))
        if call is None:
            assert untold, "nothing is to be told"
            devices.tell(*untold.pop())
            refused += 1
            continue
        assert not (untold and call.set_back)
        idle = 0 if call.begin or call.set_back or any(call.parts) or made.begun() else idle + 1
        assert idle < 2, "nothing goes on"
        history.append([(text.slot, every.index(text.request), text.number, tuple(text.pages)) for text in call.begin])
        began.update((text.request, text.number) for text in call.begin)
        sampled = devices.run(call)
        untold.insert(0, (call, sampled, devices.end(rng.choice([0.02, 0.2]))))
        while len(untold) > ahead:
            devices.tell(*untold.pop())
    assert made.held() == [0] * made.num_groups
    assert set(began) == {(one, number) for one in every for number in range(len(one.indices))}
    assert sum(began.values()) <= len(began) + made.num_set_back
    assert ahead or not refused
    return made, history, refused


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_every_text_finds_all_of_itself_whatever_comes(seed, ahead):
    play(seed, ahead=ahead)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("seed", range(30))
def test_every_text_finds_all_of_itself_where_pages_hold_one(seed, ahead):
    play(seed, tight=True, ahead=ahead)


def test_the_same_requests_and_lengths_give_the_same_calls():
    """Processes decide each for itself."""
    assert play(3)[1] == play(3)[1]


@pytest.mark.parametrize("tight", [False, True])
def test_random_workloads_set_texts_back(tight):
    assert sum(play(seed, tight=tight)[0].num_set_back > 0 for seed in range(10, 20)) > 3


def test_random_workloads_wait_to_hear_before_a_text_is_set_back():
    played = [play(seed, ahead=True) for seed in range(10, 20)]
    assert sum(made.num_set_back > 0 and refused > 0 for made, _, refused in played) > 3


# --- by hand ------------------------------------------------------------------------------------------------------


def begun(call):
    return [(text.request.prompt_ids[0], text.number, text.slot) for text in call.begin]


def entered(call):
    return [[(part.start, part.end) for part in parts] for parts in call.parts]


def test_samples_share_one_prefill_and_the_last_page_is_copied():
    """10 tokens, of which 9 enter: two pages of 4, and one token of the third, which all but the first copy."""
    made = scheduler(tokens=9)
    made.add(request(range(10), samples=3))
    first, second = made.next_call(8), made.next_call(8)
    assert (first.steps, first.tokens, entered(first), begun(first)) == (1, 9, [[(0, 9)]], [(0, 0, 0)])
    assert (second.steps, second.tokens, entered(second)) == (8, 0, [[]])
    assert begun(second) == [(0, 1, 1), (0, 2, 2)]
    texts = made.begun()
    assert len({tuple(text.pages[:2]) for text in texts}) == 1 and len({text.pages[2] for text in texts}) == 3
    assert [text.copied for text in texts] == [None, texts[0].pages[2], texts[0].pages[2]]
    assert made.held() == [2 + 3 * 3]  # and each has pages for eight more


def test_a_prompt_enters_in_parts_and_others_wait_for_it():
    made = scheduler(tokens=8, number=40)
    made.add(request(range(20)))
    made.add(request(range(30, 34)))
    made.add(request(range(40, 42)))
    first, second, third = (made.next_call(8) for _ in range(3))
    assert [entered(call) for call in (first, second, third)] == [[[(0, 8)]], [[(8, 16)]], [[(16, 19), (0, 3), (0, 1)]]]
    assert [begun(call) for call in (first, second)] == [[], []]
    assert begun(third) == [(0, 0, 0), (30, 0, 1), (40, 0, 2)]  # each in the call in which its last part enters
    assert (third.steps, made.next_call(8).steps) == (1, 8)


def test_the_last_to_come_is_set_back_and_goes_on_first():
    """Five pages of 4: each of two texts of 6 tokens has two; the first then wants another, and another."""
    made = scheduler(number=6, size=4, length=16)
    made.add(request(range(6), most=10))
    made.add(request(range(10, 16), most=10))
    devices = Devices(made, np.random.default_rng(0))
    made.add(request(range(20, 22), stage=Stage.CRITIQUE))
    calls = []
    for _ in range(6):
        calls.append(made.next_call(2))
        devices.tell(calls[-1], devices.run(calls[-1]), [])
    back = [text.request.prompt_ids[0] for call in calls for text in call.set_back]
    assert back == [10] and made.waiting == 2 and made.live == 1
    devices.tell(call := made.next_call(2), devices.run(call), devices.end(1.0))
    call = made.next_call(2)
    assert [part.text.request.prompt_ids[0] for parts in call.parts for part in parts][0] == 10
    (text,) = [part.text for part in call.parts[0] if part.text.request.prompt_ids[0] == 10]
    assert len(text.context) > 6  # with what it had sampled


def test_a_text_alone_that_copies_a_page_has_pages_enough():
    """Three pages of 4, for texts of 12 tokens: what a sample copies is held beside its own two until it is copied."""
    made = scheduler(num_slots=1, number=4, size=4, length=12)
    made.add(request(range(6), samples=3, most=6))
    devices, copied, steps = Devices(made, np.random.default_rng(0)), 0, []
    while made.waiting or made.live:
        call = made.next_call(8)
        copied += sum(text.copied is not None for text in call.begin)
        steps.append(call.steps)
        devices.tell(call, devices.run(call), devices.end(0))
    assert copied and made.num_set_back == 0
    assert min(steps[1:]) < 8  # of a call in which the copied page is held as well


def test_fewer_steps_are_taken_before_a_text_is_set_back():
    """Six pages of 4, two texts of 5 tokens with two each: both have pages for 7 steps more, none for 8."""
    made = scheduler(number=7, size=4, length=24, tokens=8)
    for first in (0, 10):
        made.add(request(range(first, first + 5), most=16))
    devices = Devices(made, np.random.default_rng(0))
    steps = []
    for _ in range(4):
        call = made.next_call(8)
        assert not call.set_back
        steps.append(call.steps)
        devices.tell(call, devices.run(call), [])
    assert steps[0] == 1 and steps[1:] == [4, 2, 1]
    assert len(made.next_call(8).set_back) == 1


def test_pages_are_for_what_a_call_that_is_not_recorded_may_have_sampled():
    """Of 4 positions. After a call of one step and two of 4, of 5 tokens: 4 enter, and up to 9 are sampled."""
    made = scheduler(number=9, size=4, length=24, tokens=8)
    made.add(request(range(5), most=16))
    devices = Devices(made, np.random.default_rng(0))
    first, second, third = ((call, devices.run(call)) for call in (made.next_call(4) for _ in range(3)))
    (text,) = made.begun()
    assert (text.length, text.ahead, len(text.pages)) == (4, 9, 4)
    devices.tell(*first, [])
    assert (text.length, text.ahead) == (5, 8)
    devices.tell(*second, [])
    devices.tell(*third, [])
    assert (text.length, text.ahead) == (13, 0)


def test_no_text_is_set_back_before_it_is_known_what_those_there_have():
    """Six pages of 4, two texts: a call that may need a seventh waits for the last, which has ended one of them."""
    made = scheduler(number=7, size=4, length=24, tokens=8)
    for first in (0, 10):
        made.add(request(range(first, first + 5), most=16))
    devices, untold = Devices(made, np.random.default_rng(0)), None
    while call := made.next_call(8):
        if untold:
            devices.tell(*untold)
        untold = call, devices.run(call), []
    assert untold and made.held() == [6] and made.live == 2 and not made.num_set_back
    devices.tell(*untold[:2], devices.end(1.0)[:1])
    after = made.next_call(8)
    assert after and not after.set_back and len(after.decoding) == 1


def test_a_text_without_pages_waits():
    made = scheduler(number=4, size=4, length=12)
    made.add(request(range(8), most=4))
    made.add(request(range(20, 28), most=4))
    made.next_call(4)
    assert (made.live, made.waiting) == (1, 1)
    assert made.waiting_by_stage() == {Stage.RESPONSE: 1}


def test_a_call_may_take_fewer_tokens_and_compute_fewer_slots():
    found = {groups: token_counts(512, groups) for groups in (1, 2, 4, 64)}
    assert found == {1: (512, 128), 2: (512, 128, 32), 4: (512, 32, 8), 64: (512, 32, 8)}
    assert row_counts(248) == (248, 124, 62) and row_counts(40) == (40, 20) and row_counts(5) == (5,)
    assert token_counts(1, 1) == (1,) and token_counts(16, 2) == (16, 4, 1)


def test_few_tokens_are_taken_where_most_would_be_padding():
    """20 tokens in one of two groups: of calls of 64, 16 and 4 tokens a group only the last are half real at least.

    So where a text decodes beside them.
    """
    for others, tokens in ((1, 4), (2, 16)):
        made = scheduler(num_groups=2, tokens=64, number=40)
        made.add(request([60]))
        assert len(made.next_call(8).begin) == 1
        for first in range(others):
            made.add(request(range(first, first + 21)))
        assert made.next_call(8).tokens == tokens


@pytest.mark.parametrize("num_groups, least", [(1, 128), (2, 32), (4, 8)])
def test_a_prompt_beside_which_nothing_decodes_enters_in_as_few_calls_as_can_be(num_groups, least):
    """3,000 tokens are five calls of 512 and one of 440; a short prompt is one call, of the least that holds it."""
    sizes = token_counts(512, num_groups)
    assert sizes[-1] == least
    for length, expected in ((3001, [512] * 6), (least + 1, [least]), (least + 2, [sizes[-2]])):
        made, found = scheduler(num_groups=num_groups, tokens=512, number=800, length=3200), []
        made.add(request(np.arange(length)))
        while not made.begun():
            found.append(made.next_call(8).tokens)
        assert found == expected


def test_responses_go_before_refinements_and_these_before_critiques():
    made = scheduler(num_slots=1, number=40, size=64)
    stages = [Stage.CRITIQUE, Stage.REFINEMENT, Stage.CRITIQUE, Stage.RESPONSE, Stage.REFINEMENT]
    for n, stage in enumerate(stages):
        made.add(request([n], stage=stage))
    order = []
    for _ in stages:
        (text,) = made.next_call(1).begin
        order.append(int(text.request.prompt_ids[0]))
        made.free(0)
    assert order == [3, 1, 4, 0, 2]
